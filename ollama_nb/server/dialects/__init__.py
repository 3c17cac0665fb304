"""Wire formats: JSON in → request, event → frame out. They know no Tornado."""
