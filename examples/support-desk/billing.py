"""The agent `billing`: tells the balance of an account, skill `billing.check_balance`."""

import os
import re
import sqlite3
from contextlib import closing

import grpc

import desk
from attache.v1 import handler_pb2_grpc

LEDGER = os.environ.get("LEDGER", "ledger.db")
MOST_WORDS = 100  # Of a request; who writes more than that is not asking for a balance.
DEMO = [("acme", 125_000, "EUR"), ("globex", -4_250, "USD"), ("initech", 0, "EUR")]


class Billing(handler_pb2_grpc.HandlerServicer):
    def Handle(self, request, context):
        asked = str(desk.data_of(request).get("account") or desk.text_of(request))
        with closing(sqlite3.connect(LEDGER)) as ledger:
            row = find(ledger, asked)
        if row is None:
            message = f'the ledger has no account that "{asked[:80]}" names: check the name'
            yield desk.failure("UNKNOWN_ACCOUNT", message, grpc.StatusCode.NOT_FOUND)
            return
        account, cents, currency = row
        yield desk.result(
            desk.text(f"The balance of {account} is {cents / 100:,.2f} {currency}."),
            desk.data({"account": account, "balance_cents": cents, "currency": currency}),
        )


def find(ledger, asked):
    """The first account whose name stands in the text as a word."""
    words = re.findall(r"[\w-]+", asked.lower())[:MOST_WORDS]
    marks = ",".join("?" * len(words))
    query = f"SELECT name, balance_cents, currency FROM accounts WHERE name IN ({marks})"
    return ledger.execute(query, words).fetchone()


def create_ledger():
    """Makes the demo accounts unless they are there; the instances share one file."""
    with closing(sqlite3.connect(LEDGER)) as ledger, ledger:
        ledger.execute(
            "CREATE TABLE IF NOT EXISTS accounts"
            " (name TEXT PRIMARY KEY, balance_cents INTEGER NOT NULL, currency TEXT NOT NULL)"
        )
        ledger.executemany("INSERT OR IGNORE INTO accounts VALUES (?, ?, ?)", DEMO)


if __name__ == "__main__":
    create_ledger()
    desk.serve(Billing())
