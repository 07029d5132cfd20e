"""The figures that training watches and evaluation reports."""
