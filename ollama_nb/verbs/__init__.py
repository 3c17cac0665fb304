"""The verbs that the terminal program and the magics share: their table, what they do, how results look.

``table`` declares names, arguments, flags and help; ``actions`` does the work through a client; ``present`` lays out
lists and details as text.
"""
