"""Arithmetic on adapters, from files alone and in factor space: never a (d, k) matrix where small ones suffice."""
