"""What Streamlit runs for every session, anew whenever something is changed; app.py is what serves it."""

from demo.frame import show

show()
