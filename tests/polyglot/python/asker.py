"""An agent that asks before it works: skill `python.order`. The answer comes with its next attempt."""

import os
from concurrent import futures

import grpc
from google.protobuf import json_format

from attache.v1 import handler_pb2 as h, handler_pb2_grpc, task_pb2 as t

SIZE = '{"type": "object", "properties": {"size": {"type": "integer"}}, "required": ["size"]}'


class Order(handler_pb2_grpc.HandlerServicer):
    def Handle(self, request, context):
        answers = {
            said.message_id: json_format.MessageToDict(said.parts[0].data)
            for said in request.inputs[1:]
            if said.role == t.ROLE_USER
        }
        if "size" not in answers:
            message = t.Message(parts=[t.Part(text="Which size?")])
            question = t.Question(question_id="size", message=message, answer_schema=SIZE)
            yield h.HandleResponse(question=question)
            return
        text = f"{request.inputs[0].parts[0].text} in {answers['size']['size']:.0f}"
        yield h.HandleResponse(result=t.TaskResult(parts=[t.Part(text=text)]))


server = grpc.server(futures.ThreadPoolExecutor(max_workers=8))
handler_pb2_grpc.add_HandlerServicer_to_server(Order(), server)
server.add_insecure_port(os.environ["ATTACHE_LISTEN"])
server.start()
server.wait_for_termination()
