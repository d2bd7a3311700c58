// <html lang> is "en" whatever Streamlit shows: screen readers and the choice of kanji shapes go by it.
export default function ({ data }) {
  document.documentElement.lang = data.lang;
}
