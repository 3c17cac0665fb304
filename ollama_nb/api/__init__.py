"""The words of the house: frozen values that every room above shares. No I/O here."""
