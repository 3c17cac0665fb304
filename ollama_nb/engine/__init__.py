"""One model, many sequences: decisions in pure Python, llama.cpp behind one door. Knows no process and no HTTP."""
