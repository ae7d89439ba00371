"""Studies: many small runs that share one teacher, and the tables over them."""
