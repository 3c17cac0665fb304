"""The API of llama.cpp's server that editors and other clients use beside ``/v1``: infill, templates, properties."""
