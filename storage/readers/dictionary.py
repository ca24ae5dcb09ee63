"""`python -m layerrank.storage.readers.dictionary`: what every table and view holds, as Markdown.

It is what DuckDB says of empty tables with the comments that `query` sees, so that both say the
same: `docs/tables.md`.
"""

from __future__ import annotations

import sys

import duckdb

from layerrank.storage import schema
from layerrank.storage.partition import KEYS
from layerrank.storage.readers import views

_TOP = """# Tables and views

Every view of `layerrank query`, and every table of a root: a column's type in DuckDB, its unit and
its meaning. `make docs` writes this page from [`storage/schema.py`](../storage/schema.py) and
[`storage/readers/views.py`](../storage/readers/views.py). Within a query the same stands in
`duckdb_columns()`:

```sql
SELECT table_name, column_name, comment FROM duckdb_columns() WHERE comment LIKE '%0..1%'
```

A table is Parquet under `TABLE/key=value/…`, and its keys are the folders. A number that does not
exist is NaN in the tables, with the reason beside it, and NULL in the views, so that `max` and
`arg_max` pass over it. A view or a table is there when something of it is complete. Vectors of
models with 384 and 768 features are in `vectors_384` and `vectors_768`; `vectors` is there where
all have the same number.
"""
_SIZE = 384  # of the vectors that the page shows
_SAYS = "SELECT comment FROM duckdb_{0}s() WHERE {0}_name = ? AND schema_name = 'main'"
_COLUMNS = """
    SELECT column_name, data_type, comment FROM duckdb_columns()
    WHERE table_name = ? AND schema_name = 'main' ORDER BY column_index
"""


def page() -> str:
    """Return the data dictionary."""
    lines = [_TOP]
    with duckdb.connect() as connection:
        for table in KEYS:
            empty = views.empty(table)
            connection.from_arrow(empty).create(table)
            views.comment(
                connection,
                table,
                schema.TABLES[table][0],
                views.meanings(table, empty.column_names),
            )
        embeddings = {_SIZE: "SELECT * FROM embeddings"}
        made = views.create(connection, views.NOTHING, schema.TABLES, "[]", embeddings)
        for kind, title, names in (("view", "Views", made), ("table", "Tables", schema.TABLES)):
            lines.append(f"## {title}\n")
            for name in (each for each in names if each != f"vectors_{_SIZE}"):
                (says,) = connection.execute(_SAYS.format(kind), [name]).fetchone() or ("",)
                lines += [f"### {name}\n", f"{says[0].upper()}{says[1:]}.\n"]
                lines += ["| column | type | unit and meaning |", "|---|---|---|"]
                columns = connection.execute(_COLUMNS, [name]).fetchall()
                lines += [*(f"| {' | '.join(each)} |" for each in columns), ""]
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    sys.stdout.write(page())
