"""The demo, a small studio in the browser. The pages alone know Streamlit; all else here is plain Python over jpgen's public names."""
