"""One end of an HTTP/2 connection's header compression, by the library that Python's HTTP clients use.

Each line on standard input is a JSON object; each is answered by one:
  {"table": N}                       SETTINGS_HEADER_TABLE_SIZE of both ends from now on
  {"decode": HEX}                    {"fields": [[NAME, VALUE, NEVER_INDEXED], ...]} or {"error": TEXT}
  {"encode": FIELDS, "huffman": B}   {"block": HEX}
Names and values are hexadecimal, as they need not be text.
"""

import json
import sys

import hpack

encoder = hpack.Encoder()
decoder = hpack.Decoder(max_header_list_size=1 << 20)


def table(ask):
    encoder.header_table_size = ask["table"]
    decoder.max_allowed_table_size = ask["table"]
    return {}


def decode(ask):
    try:
        fields = decoder.decode(bytes.fromhex(ask["decode"]), raw=True)
    except hpack.HPACKError as error:
        return {"error": f"{type(error).__name__}: {error}"}
    # A field that may be indexed is of another class.
    return {"fields": [[name.hex(), value.hex(), not field.indexable] for field in fields for name, value in [field]]}


def encode(ask):
    fields = [
        (bytes.fromhex(name), bytes.fromhex(value), never) for name, value, never in ask["encode"]
    ]
    return {"block": encoder.encode(fields, huffman=ask["huffman"]).hex()}


for line in sys.stdin:
    ask = json.loads(line)
    do = table if "table" in ask else decode if "decode" in ask else encode
    print(json.dumps(do(ask)), flush=True)
