"""Counting privacy: accountants over dp_accounting."""
