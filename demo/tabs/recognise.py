def show() -> None:
    import streamlit as st
    st.text("…")
