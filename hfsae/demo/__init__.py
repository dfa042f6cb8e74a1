"""The steering demo: `hfsae demo`. Needs gradio, the `demo` extra."""
