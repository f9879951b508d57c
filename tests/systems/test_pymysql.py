"""PyMySQL, which is pure Python, on MariaDB."""

from __future__ import annotations

from typing import Any

from .conftest import needs
from .mysql import MySQLClient, MySQLTests

pymysql = needs("pymysql")


class PyMySQLClient(MySQLClient):
    errors = (
        pymysql.err.OperationalError,
        pymysql.err.InterfaceError,
        pymysql.err.InternalError,
    )

    def connect(self, port: int) -> Any:
        return pymysql.connect(host="127.0.0.1", port=port, user="root", autocommit=True)

    def is_open(self, connection: Any) -> bool:
        return bool(connection.open)


class TestPyMySQL(MySQLTests):
    client_class = PyMySQLClient
