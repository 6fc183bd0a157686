"""From the store to what people read: tables, statistics, claims, figures, and files of them."""
