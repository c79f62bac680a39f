"""Spending credits: service keys, holds, charges, prices and reports."""
