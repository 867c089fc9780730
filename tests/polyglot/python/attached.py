"""An agent without a port, as `Agent.Attach` in agent.proto shows it: the code below is that code."""

import os, queue
import grpc
from attache.v1 import agent_pb2 as a, agent_pb2_grpc, handler_pb2 as h, task_pb2 as t

def handle(request):
    text = "".join(part.text for part in request.inputs[0].parts)
    yield h.HandleResponse(progress=t.Progress(fraction=0.5, message="half way"))
    yield h.HandleResponse(result=t.TaskResult(parts=[t.Part(text=text.upper())]))

channel = grpc.insecure_channel(
    os.environ["ATTACHE_SIDECAR"], options=[("grpc.default_authority", "localhost")])
say = queue.SimpleQueue()
say.put(a.AttachRequest(hello=a.AttachHello(places=1)))
heard = agent_pb2_grpc.AgentStub(channel).Attach(iter(say.get, None), wait_for_ready=True)
for message in heard:
    work = message.work
    if message.WhichOneof("say") != "work":
        continue  # one attempt at a time, and short ones: nothing to count or to cancel
    end = a.AttachEnd(work=work.work)
    try:
        for update in handle(work.request):
            say.put(a.AttachRequest(update=a.AttachUpdate(work=work.work, update=update)))
    except Exception as error:
        end.code, end.message = grpc.StatusCode.UNKNOWN.value[0], str(error)
    say.put(a.AttachRequest(end=end))
