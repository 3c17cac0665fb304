"""The kernel side: magics and display. A light client; llama.cpp never loads here."""
