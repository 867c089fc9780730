"""The agent `triage`: finds who can help with a request, and asks them, skill `support.triage`."""

import re

import grpc

import desk
from attache.v1 import agent_pb2, agent_pb2_grpc, handler_pb2_grpc
from attache.v1 import registry_pb2, registry_pb2_grpc, task_pb2

TAG, WORD = 3, 1  # What a word of the request is worth in a skill's tags, and in its description.
ENOUGH = 2  # Below this nobody is asked: one word of a description may be chance.
MOST_PAGES = 20  # Of 100 agents each.


class Triage(handler_pb2_grpc.HandlerServicer):
    def __init__(self, sidecar):
        self.registry = registry_pb2_grpc.RegistryStub(sidecar)
        self.agent = agent_pb2_grpc.AgentStub(sidecar)

    def Handle(self, request, context):
        try:
            yield from self.triage(request, context)
        except grpc.RpcError as error:
            yield desk.failure("MESH_UNAVAILABLE", error.details(), error.code())

    def triage(self, request, context):
        asked = desk.text_of(request)
        yield desk.progress(0.1, "looking", "asking the registry who is here")
        skill = best_skill(asked, self.skills(but=request.task.skill))
        if skill is None:
            message = f'no agent here can help with "{asked[:80]}": say it in other words'
            yield desk.failure("NOBODY_CAN_HELP", message, grpc.StatusCode.NOT_FOUND)
            return

        yield desk.progress(0.3, "delegating", f"asking for {skill.name}: {skill.description}")
        spec = agent_pb2.TaskSpec(
            selector=registry_pb2.Selector(skill=skill.name),
            input=request.inputs[0].parts,
            parent_token=request.parent_token,  # Makes it a child: it ends when we do.
        )
        run = agent_pb2.RunTaskRequest(spec=spec)
        trace = desk.trace_of(context)
        updates = self.agent.RunTask(run, timeout=context.time_remaining(), metadata=trace)
        context.add_callback(updates.cancel)
        child = next(updates).update.task.id  # The first update is the task itself.
        for update in (response.update for response in updates):
            if update.event.HasField("progress"):
                yield desk.progress(0.5, "delegating", update.event.progress.message)
        yield self.outcome(child)

    def skills(self, but):
        """All skills in the catalog but our own: asking ourselves would never end."""
        token = ""
        for _ in range(MOST_PAGES):
            page = self.registry.ListAgents(registry_pb2.ListAgentsRequest(page_token=token))
            for card in page.cards:
                yield from (skill for skill in card.skills if skill.name != but)
            token = page.next_page_token
            if not token:
                return

    def outcome(self, child):
        """The end of a task as our own end: its result, or why there is none."""
        full = agent_pb2.GetTaskRequest(task_id=child, view=agent_pb2.TASK_VIEW_FULL)
        task = self.agent.GetTask(full).task
        if task.state == task_pb2.TASK_STATE_COMPLETED:
            return desk.result(*task.result.parts)
        why = task.failure
        code = next((c for c in grpc.StatusCode if c.value[0] == why.code), grpc.StatusCode.UNKNOWN)
        return desk.failure(why.reason or "NOT_DONE", f"{task.skill}: {why.message}", code)


def best_skill(asked, skills):
    """The skill that speaks most of what was asked; none if no skill speaks of it."""
    wanted = words(asked)

    def fit(skill):
        tags = wanted & words(" ".join(skill.tags))
        return TAG * len(tags) + WORD * len((wanted & words(skill.description)) - tags)

    best = max(skills, key=fit, default=None)
    return best if best is not None and fit(best) >= ENOUGH else None


def words(sentence):
    """Words of four letters and more, without their plural: short ones say little."""
    return {word.removesuffix("s") for word in re.findall(r"[a-z]{4,}", sentence.lower())}


if __name__ == "__main__":
    desk.serve(Triage(desk.sidecar()))
