"""The city's hub: what operators share, joined, and shown to those who may see it."""
