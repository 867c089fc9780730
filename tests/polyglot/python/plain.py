"""One call with nothing but grpcio and no option: what comes back, or the status.

    plain.py TARGET METHOD [KEY=VALUE ...]

The request is empty; the answer is printed as hexadecimal digits.
"""

import sys

import grpc


def main():
    target, method, *metadata = sys.argv[1:]
    pairs = [tuple(one.split("=", 1)) for one in metadata]
    with grpc.insecure_channel(target) as channel:
        call = channel.unary_unary(method, request_serializer=bytes, response_deserializer=bytes)
        try:
            print("OK", call(b"", metadata=pairs, timeout=20).hex())
        except grpc.RpcError as error:
            print(error.code().name, error.details())


main()
