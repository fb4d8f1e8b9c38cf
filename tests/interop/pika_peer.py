"""The other end of tests/live/interop.rs: pika.

publish URL QUEUE   publishes a message with every property and every type of
                    header value that pika can write
get URL QUEUE       takes a message and prints all of it, one value a line
"""

import datetime
import decimal
import sys

import pika

PROPERTIES = pika.BasicProperties(
    content_type="text/plain",
    content_encoding="utf-8",
    headers={
        "true": True,
        "false": False,
        "int": -3,
        "long": 1 << 40,
        "negative long": -(1 << 40),
        "decimal": decimal.Decimal("3.14"),
        "negative decimal": decimal.Decimal("-3.14"),
        "string": "tëxt",
        "bytes": b"\x00\xff",
        "timestamp": datetime.datetime(2023, 11, 14, 22, 13, 20),
        "array": [1, "two", None, [3]],
        "table": {"inner": {"deep": 1}},
        "void": None,
    },
    delivery_mode=2,
    priority=5,
    correlation_id="correlation",
    reply_to="reply",
    expiration="600000",
    message_id="message",
    timestamp=1700000000,
    type="type",
    user_id="guest",
    app_id="app",
    cluster_id="cluster",
)

NAMES = (
    "content_type content_encoding delivery_mode priority correlation_id reply_to "
    "expiration message_id timestamp type user_id app_id cluster_id"
).split()


def show(path, value):
    """Prints a value, and what is in it."""
    if isinstance(value, dict):
        print(f"{path}: dict of {len(value)}")
        for name, inner in value.items():
            show(f"{path}.{name}", inner)
    elif isinstance(value, list):
        print(f"{path}: list of {len(value)}")
        for index, inner in enumerate(value):
            show(f"{path}.{index}", inner)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        # Which of them it is differs between the versions of pika.
        print(f"{path}: number {int(value) if value == int(value) else value}")
    elif isinstance(value, datetime.datetime):
        # Some versions of pika add the time zone, which is always UTC.
        assert value.utcoffset() in (None, datetime.timedelta(0)), value
        print(f"{path}: datetime {value.replace(tzinfo=None)!r}")
    else:
        print(f"{path}: {type(value).__name__} {value!r}")


def publish(channel, queue):
    channel.confirm_delivery()
    channel.basic_publish("", queue, bytes(range(256)), PROPERTIES, mandatory=True)


def get(channel, queue):
    method, properties, body = channel.basic_get(queue, auto_ack=True)
    show("exchange", method.exchange)
    show("routing_key", method.routing_key)
    show("body", body.hex())
    for name in NAMES:
        show(name, getattr(properties, name))
    show("headers", properties.headers)


def main():
    action, url, queue = sys.argv[1:]
    sys.stdout.reconfigure(encoding="utf-8")
    connection = pika.BlockingConnection(pika.URLParameters(url))
    {"publish": publish, "get": get}[action](connection.channel(), queue)
    connection.close()


main()
