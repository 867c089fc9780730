//! What a caller asked for, checked at the door and turned into a task that cannot be wrong.
//!
//! Pure: the clock's readings, the new id and the parent are passed in. Refused here: everything
//! that breaks a bound, and what the contract has but this version does not serve.

use std::mem;
use std::time::{Duration, SystemTime};

use prost::Message;
use prost_types::value::Kind;
use tokio::time::Instant;

use crate::domain::{AgentName, Fault, Label, Reason, SkillName, SpiffeId, TaskId};
use crate::pb;
use crate::runtime::chance;
use crate::telemetry::TraceContext;

use super::callback::{self, Tells};
use super::doors::{Fare, Parent};
use super::key::IdempotencyKey;
use super::lineage::{self, extended, narrowed};

/// Most bytes of all input parts together, encoded.
pub const INPUT_MAX: usize = 1 << 20;
/// Most bytes of the context object, encoded; it goes into every child and every attempt.
pub const CONTEXT_MAX: usize = 64 << 10;
/// Most bytes of the correlation id and of the context id.
pub const ID_MAX: usize = 128;
/// Most tags, and most labels, of a selector; each at most [`LABEL_BYTES_MAX`] long.
pub const LABELS_MAX: usize = 64;
/// Most bytes of a tag, of a label's key and of its value.
pub const LABEL_BYTES_MAX: usize = 256;
/// Deepest nesting of a JSON value; well under the 100 at which decoders give up.
pub const DEPTH_MAX: usize = 32;
/// Weight of a task that names none.
pub const PRIORITY: u32 = 5;
/// Largest weight.
pub const PRIORITY_MAX: u32 = 10;
/// Deadline of a task that names none.
pub const DEADLINE_DEFAULT: Duration = Duration::from_secs(3600);
/// Longest deadline.
pub const DEADLINE_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
/// What a child's deadline leaves of its parent's, for the answer's way back.
pub const HOP_MARGIN: Duration = Duration::from_millis(50);

/// Readings of both clocks, taken once per decision.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// What deadlines and waits count on.
    pub now: Instant,
    /// What is shown and stored.
    pub wall: SystemTime,
}

impl Moment {
    /// When on the steady clock the wall clock will show `at`; past times are now.
    pub fn instant_of(&self, at: SystemTime) -> Instant {
        let ahead = at.duration_since(self.wall).unwrap_or_default();
        self.now + ahead.min(DEADLINE_MAX)
    }
}

/// What a caller hands over, and what the home knows about the call.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Id of the task to be.
    pub id: TaskId,
    /// As it came.
    pub spec: pb::TaskSpec,
    /// Who asks, by certificate or as the own agent.
    pub caller: SpiffeId,
    /// Namespace in which bare names are looked up.
    pub namespace: Label,
    /// This sidecar's member: what the chain names as the parent's executor.
    pub own: SpiffeId,
    /// The attempt that asks, where the spec's `parent_token` names one.
    pub parent: Option<Parent>,
    /// Of the spec's `idempotency_key`, which the id was made of.
    pub key: Option<IdempotencyKey>,
}

/// A task that passed every check and is not on disk yet.
#[derive(Debug)]
pub struct NewTask {
    /// Ids, parties and options in force; SUBMITTED, without events.
    pub task: pb::Task,
    /// What was asked for; its `parent_token` is gone, it is a secret of the running attempt.
    pub spec: pb::TaskSpec,
    /// Token of the attempt that made it. Never stored.
    pub maker: Option<String>,
    /// It ends with that attempt.
    pub ends_with_maker: bool,
    /// Tasks that may be made below it, at all depths: of a root in all, of a child those that it gets
    /// beforehand.
    pub descendants: u32,
    /// What it takes out of those that its maker may have made; `None`: it is not paid for yet.
    pub fare: Option<Box<Fare>>,
    /// What its attempts go below, in whatever traces them.
    pub trace: Option<TraceContext>,
    /// Why it is refused, unless it was taken before.
    pub unfit: Option<Box<Fault>>,
    /// By which the same submission is known again.
    pub key: Option<IdempotencyKey>,
    /// Its deadline on the steady clock, from the same look at both clocks as the one in its options:
    /// a clock that is set meanwhile ends nothing.
    pub due: Instant,
    /// URL to call back, whole; empty: none.
    pub callback_url: String,
    /// The change of another task that it tells an agent of; `None`: of none.
    pub tells: Option<Tells>,
}

impl NewTask {
    /// Checks what was asked for.
    ///
    /// # Errors
    /// INVALID_FIELD with the field's path, PAYLOAD_TOO_LARGE, DELEGATION_LOOP, OUT_OF_SCOPE, and
    /// UNIMPLEMENTED for what is not served yet. A deadline that has passed is none: it may be a submission that comes again.
    pub fn check(asked: Asked, at: &Moment) -> Result<Self, Fault> {
        let Asked {
            id,
            mut spec,
            caller,
            namespace,
            own,
            parent,
            key,
        } = asked;
        unserved(&spec)?;
        let selector = check_selector(&mut spec, &namespace)?;
        check_payload(&spec)?;
        let asked = spec.options.take().unwrap_or_default();
        let (options, callback_url) = options_in_force(asked, at, parent.as_ref(), &namespace)?;
        let due = due(&options, at);
        let ends_with_maker = parent.is_some() && !options.detached;
        let id = id.to_string();
        let mut task = pb::Task {
            skill: selector.skill,
            agent: selector.agent,
            state: pb::TaskState::Submitted.into(),
            caller: caller.to_string(),
            origin: caller.to_string(),
            namespace: namespace.to_string(),
            callback: options.callback.is_some().then(Default::default),
            options: Some(options),
            correlation_id: spec.correlation_id.clone(),
            context_id: spec.context_id.clone(),
            root_task_id: id.clone(),
            created_at: Some(at.wall.into()),
            updated_at: Some(at.wall.into()),
            id,
            ..pb::Task::default()
        };
        // As it was asked for it stays in the spec.
        let above = parent.as_ref().map_or(&[][..], |above| &above.task.scope);
        task.scope = narrowed(above, spec.scope.clone(), &namespace)?;
        let maker = parent.is_some().then(|| mem::take(&mut spec.parent_token));
        if let Some(parent) = parent {
            inherit(&mut task, parent, &own)?;
        }
        if task.correlation_id.is_empty() {
            task.correlation_id = chance::uuid().to_string();
        }
        Ok(Self {
            task,
            spec,
            maker,
            ends_with_maker,
            descendants: 0,
            fare: None,
            trace: None,
            unfit: None,
            key,
            due,
            callback_url,
            tells: None,
        })
    }
}

/// What the contract has and this version does not serve: refused, never ignored.
fn unserved(spec: &pb::TaskSpec) -> Result<(), Fault> {
    let refuse = |given: bool, path: &str| {
        let fault = Fault {
            field: Some(path.to_owned()),
            ..Fault::unimplemented(path)
        };
        if given { Err(fault) } else { Ok(()) }
    };
    let Some(options) = &spec.options else {
        return Ok(());
    };
    refuse(options.budget.is_some(), "spec.options.budget")?;
    Ok(())
}

fn check_selector(spec: &mut pb::TaskSpec, namespace: &Label) -> Result<pb::Selector, Fault> {
    let Some(selector) = &mut spec.selector else {
        return Err(Fault::field(
            "spec.selector",
            "name a skill in spec.selector.skill",
        ));
    };
    if let Err(wrong) = selector.skill.parse::<SkillName>() {
        return Err(Fault::field("spec.selector.skill", wrong.to_string()));
    }
    if !selector.agent.is_empty() {
        selector.agent = AgentName::parse_in(&selector.agent, namespace)
            .map_err(|wrong| Fault::field("spec.selector.agent", wrong.to_string()))?
            .to_string();
    }
    let too_long = |text: &String| text.len() > LABEL_BYTES_MAX;
    let bound = format!("at most {LABELS_MAX}, each at most {LABEL_BYTES_MAX} bytes long");
    if selector.tags.len() > LABELS_MAX || selector.tags.iter().any(too_long) {
        return Err(Fault::field("spec.selector.tags", bound));
    }
    let long_label = selector
        .labels
        .iter()
        .any(|(key, value)| too_long(key) || too_long(value));
    if selector.labels.len() > LABELS_MAX || long_label {
        return Err(Fault::field("spec.selector.labels", bound));
    }
    for (path, version) in [
        ("spec.selector.version", &selector.version),
        ("spec.selector.agent_version", &selector.agent_version),
    ] {
        if version.len() > LABEL_BYTES_MAX
            || !version.is_empty() && semver::VersionReq::parse(version).is_err()
        {
            return Err(Fault::field(path, "not a SemVer requirement, such as ^1.2"));
        }
    }
    Ok(selector.clone())
}

fn check_payload(spec: &pb::TaskSpec) -> Result<(), Fault> {
    let input: usize = spec.input.iter().map(Message::encoded_len).sum();
    if input > INPUT_MAX {
        return Err(too_large("spec.input", input, INPUT_MAX));
    }
    for (place, part) in spec.input.iter().enumerate() {
        check_part(part, &format!("spec.input[{place}]"))?;
    }
    if let Some(context) = &spec.context {
        let size = context.encoded_len();
        if size > CONTEXT_MAX {
            return Err(too_large("spec.context", size, CONTEXT_MAX));
        }
        if context
            .fields
            .values()
            .any(|value| deeper_than(value, DEPTH_MAX - 1))
        {
            return Err(too_deep("spec.context".into()));
        }
    }
    for (path, id) in [
        ("spec.correlation_id", &spec.correlation_id),
        ("spec.context_id", &spec.context_id),
    ] {
        if id.len() > ID_MAX || id.chars().any(char::is_control) {
            let text = format!("at most {ID_MAX} bytes without control characters");
            return Err(Fault::field(path, text));
        }
    }
    Ok(())
}

/// Checks one part of a payload: something in it, no blob, no nesting that a decoder gives up on.
///
/// # Errors
/// INVALID_FIELD or UNIMPLEMENTED under `path`.
pub fn check_part(part: &pb::Part, path: &str) -> Result<(), Fault> {
    match &part.content {
        None => return Err(Fault::field(path, "empty: set text, raw, url or data")),
        Some(pb::part::Content::Blob(_)) => {
            let path = format!("{path}.blob");
            return Err(Fault {
                field: Some(path.clone()),
                ..Fault::unimplemented(&path)
            });
        }
        Some(pb::part::Content::Data(value)) if deeper_than(value, DEPTH_MAX) => {
            return Err(too_deep(format!("{path}.data")));
        }
        Some(_) => {}
    }
    let metadata = part
        .metadata
        .iter()
        .flat_map(|object| object.fields.values());
    for value in metadata {
        if deeper_than(value, DEPTH_MAX - 1) {
            return Err(too_deep(format!("{path}.metadata")));
        }
    }
    Ok(())
}

/// Whether `value` nests deeper than `most`; a plain value is one deep.
fn deeper_than(value: &prost_types::Value, most: usize) -> bool {
    if most == 0 {
        return true;
    }
    match &value.kind {
        Some(Kind::ListValue(list)) => list.values.iter().any(|v| deeper_than(v, most - 1)),
        Some(Kind::StructValue(object)) => object.fields.values().any(|v| deeper_than(v, most - 1)),
        Some(
            Kind::NullValue(_) | Kind::NumberValue(_) | Kind::StringValue(_) | Kind::BoolValue(_),
        )
        | None => false,
    }
}

/// The options with every default filled in, and the whole URL to call back; the deadline is a wall
/// time from here on.
fn options_in_force(
    mut asked: pb::TaskOptions,
    at: &Moment,
    parent: Option<&Parent>,
    namespace: &Label,
) -> Result<(pb::TaskOptions, String), Fault> {
    let own = match (&asked.timeout, &asked.deadline) {
        (Some(_), Some(_)) => {
            let text = "set the deadline or the timeout, not both";
            return Err(Fault::field("spec.options.timeout", text));
        }
        (Some(timeout), None) => Duration::try_from(*timeout)
            .map_err(|_| Fault::field("spec.options.timeout", "must not be negative"))?,
        (None, Some(deadline)) => {
            let due = SystemTime::try_from(*deadline)
                .map_err(|_| Fault::field("spec.options.deadline", "not a time"))?;
            due.duration_since(at.wall).unwrap_or_default()
        }
        (None, None) => DEADLINE_DEFAULT,
    };
    if own > DEADLINE_MAX {
        let path = if asked.timeout.is_some() {
            "spec.options.timeout"
        } else {
            "spec.options.deadline"
        };
        return Err(Fault::field(path, "at most seven days ahead"));
    }
    let left = parent.map_or(own, |parent| {
        let above = parent.deadline.saturating_duration_since(at.now);
        own.min(above.saturating_sub(HOP_MARGIN))
    });
    let on_agent_loss = pb::OnAgentLoss::try_from(asked.on_agent_loss)
        .map_err(|_| Fault::field("spec.options.on_agent_loss", "not one of the choices"))?;
    let durability = match pb::Durability::try_from(asked.durability) {
        Ok(pb::Durability::Ephemeral) => pb::Durability::Ephemeral,
        Ok(pb::Durability::Durable | pb::Durability::Unspecified) => pb::Durability::Durable,
        Err(_) => {
            return Err(Fault::field(
                "spec.options.durability",
                "not one of the choices",
            ));
        }
    };
    let in_memory = durability == pb::Durability::Ephemeral;
    let (callback, callback_url) = callback::asked(asked.callback.take(), namespace, in_memory)?;
    let options = pb::TaskOptions {
        priority: priority_of(asked.priority)?,
        deadline: Some((at.wall + left).into()),
        timeout: None,
        durability: durability.into(),
        on_agent_loss: on_agent_loss.into(),
        detached: asked.detached,
        fail_fast: asked.fail_fast,
        callback,
        budget: None,
    };
    Ok((options, callback_url))
}

/// When a task of these options ends at the latest.
fn due(options: &pb::TaskOptions, at: &Moment) -> Instant {
    let due = options.deadline.map(SystemTime::try_from);
    due.and_then(Result::ok)
        .map_or(at.now, |due| at.instant_of(due))
}

/// The priority in force.
fn priority_of(asked: u32) -> Result<u32, Fault> {
    match asked {
        0 => Ok(PRIORITY),
        priority if priority <= PRIORITY_MAX => Ok(priority),
        _ => {
            let text = format!("1 to {PRIORITY_MAX}; 0 stands for {PRIORITY}");
            Err(Fault::field("spec.options.priority", text))
        }
    }
}

/// What a child takes over from the attempt that made it.
fn inherit(task: &mut pb::Task, parent: Parent, own: &SpiffeId) -> Result<(), Fault> {
    let above = parent.task;
    let link = pb::ChainLink {
        spiffe_id: own.to_string(),
        skill: above.skill,
        task_id: above.id.clone(),
        attempt: parent.attempt,
        scope: above.scope,
        ..pb::ChainLink::default()
    };
    task.chain = extended(parent.chain, link, "spec.parent_token")?;
    let named = task.agent.parse().ok().filter(|_| !task.agent.is_empty());
    lineage::check(&task.chain, named.as_ref(), &task.skill)?;
    task.origin = above.origin;
    task.root_task_id = if above.root_task_id.is_empty() {
        above.id.clone()
    } else {
        above.root_task_id
    };
    task.parent_attempt = parent.attempt;
    task.parent_task_id = above.id;
    if !task.correlation_id.is_empty() && task.correlation_id != above.correlation_id {
        let text = "a child has its parent's, as all of the tree: leave it empty";
        return Err(Fault::field("spec.correlation_id", text));
    }
    task.correlation_id = above.correlation_id;
    lineage::may_call_back(task)
}

pub(super) fn too_large(path: &str, size: usize, most: usize) -> Fault {
    Fault {
        field: Some(path.to_owned()),
        ..Fault::new(
            Reason::PayloadTooLarge,
            format!("{path} is {size} bytes encoded, at most {most} are taken: send a url instead"),
        )
    }
}

fn too_deep(path: String) -> Fault {
    Fault::field(path, format!("nested deeper than {DEPTH_MAX}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::task::lineage::CHAIN_MAX;

    fn moment() -> Moment {
        Moment {
            now: Instant::now(),
            wall: SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000),
        }
    }

    fn asked(change: impl FnOnce(&mut pb::TaskSpec)) -> Asked {
        let mut spec = pb::TaskSpec {
            selector: Some(pb::Selector {
                skill: "work.do".into(),
                ..Default::default()
            }),
            options: Some(pb::TaskOptions::default()),
            ..Default::default()
        };
        change(&mut spec);
        let own: SpiffeId = "spiffe://attache.local/ns/prod/agent/worker"
            .parse()
            .unwrap();
        Asked {
            id: "home.00000000-0000-0000-0000-000000000001".parse().unwrap(),
            spec,
            caller: own.clone(),
            namespace: "prod".parse().unwrap(),
            own,
            key: None,
            parent: None,
        }
    }

    fn options(spec: &mut pb::TaskSpec) -> &mut pb::TaskOptions {
        spec.options.get_or_insert_default()
    }

    fn nested(depth: usize) -> prost_types::Value {
        (1..depth).fold(prost_types::Value::from(1.0), |inner, _| {
            prost_types::Value::from(vec![inner])
        })
    }

    fn data(depth: usize) -> pb::Part {
        let content = Some(pb::part::Content::Data(nested(depth)));
        pb::Part {
            content,
            ..Default::default()
        }
    }

    #[test]
    fn defaults_are_filled_in() {
        let new = NewTask::check(
            asked(|spec| spec.selector.as_mut().unwrap().agent = "x".into()),
            &moment(),
        );
        let task = new.unwrap().task;
        let options = task.options.unwrap();
        assert_eq!(options.deadline.unwrap().seconds, 1_000_000 + 3600);
        assert_eq!(
            (options.priority, options.durability()),
            (5, pb::Durability::Durable)
        );
        assert_eq!(
            (task.agent.as_str(), task.namespace.as_str()),
            ("prod/x", "prod")
        );
        assert_eq!(task.root_task_id, task.id);
        assert!(!task.correlation_id.is_empty());
    }

    type Row = (&'static str, Reason, fn(&mut pb::TaskSpec));

    fn selector(spec: &mut pb::TaskSpec) -> &mut pb::Selector {
        spec.selector.get_or_insert_default()
    }

    fn holding(content: pb::part::Content) -> Vec<pb::Part> {
        vec![pb::Part {
            content: Some(content),
            ..Default::default()
        }]
    }

    const BREACHES: &[Row] = &[
        ("spec.selector", Reason::InvalidField, |s| {
            s.selector = None;
        }),
        ("spec.selector.skill", Reason::InvalidField, |s| {
            selector(s).skill.clear();
        }),
        ("spec.selector.agent", Reason::InvalidField, |s| {
            selector(s).agent.push('A');
        }),
        ("spec.selector.version", Reason::InvalidField, |s| {
            selector(s).version.push('!');
        }),
        ("spec.selector.tags", Reason::InvalidField, |s| {
            selector(s).tags.resize(65, "".into());
        }),
        ("spec.input[0]", Reason::InvalidField, |s| {
            s.input.push(pb::Part::default());
        }),
        ("spec.input[0].data", Reason::InvalidField, |s| {
            s.input.push(data(33));
        }),
        ("spec.input", Reason::PayloadTooLarge, |s| {
            s.input = holding(pb::part::Content::Text("x".repeat(INPUT_MAX)));
        }),
        ("spec.correlation_id", Reason::InvalidField, |s| {
            s.correlation_id = "x".repeat(129);
        }),
        ("spec.options.timeout", Reason::InvalidField, |s| {
            options(s).timeout = seconds(700_000);
        }),
        ("spec.options.timeout", Reason::InvalidField, |s| {
            options(s).timeout = seconds(-1);
        }),
    ];

    const UNSERVED: &[Row] = &[
        ("spec.input[0].blob", Reason::Unimplemented, |s| {
            s.input = holding(pb::part::Content::Blob(pb::BlobRef::default()));
        }),
        ("spec.options.priority", Reason::InvalidField, |s| {
            options(s).priority = 11;
        }),
        ("spec.options.callback", Reason::InvalidField, |s| {
            options(s).callback = Some(pb::Callback::default());
        }),
        ("spec.options.budget", Reason::Unimplemented, |s| {
            options(s).budget = Some(pb::Usage::default());
        }),
    ];

    fn seconds(seconds: i64) -> Option<prost_types::Duration> {
        Some(prost_types::Duration { seconds, nanos: 0 })
    }

    #[test]
    fn what_breaks_a_bound_or_is_not_served_is_named() {
        for (field, reason, change) in BREACHES.iter().chain(UNSERVED) {
            let fault = NewTask::check(asked(change), &moment()).unwrap_err();
            assert_eq!(
                (fault.field.as_deref(), fault.reason),
                (Some(*field), *reason)
            );
        }
        let past = |spec: &mut pb::TaskSpec| {
            options(spec).deadline = Some(prost_types::Timestamp::default());
        };
        // Whether it is too late is asked when it is known not to be a submission that comes again.
        let at = moment();
        assert!(NewTask::check(asked(past), &at).unwrap().due <= at.now);
    }

    #[test]
    fn a_child_inherits_and_gets_no_more_time_than_is_left() {
        let at = moment();
        let mut asked = asked(|spec| spec.parent_token = "secret".into());
        asked.parent = Some(Parent {
            task: pb::Task {
                id: "p".into(),
                origin: "spiffe://attache.local/operator/ops".into(),
                correlation_id: "c".into(),
                root_task_id: "r".into(),
                ..Default::default()
            },
            attempt: 2,
            deadline: at.now + Duration::from_secs(10),
            chain: vec![],
            trace: None,
        });
        let mut deep = asked.clone();
        let new = NewTask::check(asked, &at).unwrap();
        let task = new.task;
        let due = SystemTime::try_from(task.options.unwrap().deadline.unwrap()).unwrap();
        assert_eq!(due, at.wall + Duration::from_secs(10) - HOP_MARGIN);
        assert_eq!(
            (task.parent_task_id.as_str(), task.parent_attempt),
            ("p", 2)
        );
        assert_eq!(
            (task.root_task_id.as_str(), task.correlation_id.as_str()),
            ("r", "c")
        );
        assert_eq!(task.origin, "spiffe://attache.local/operator/ops");
        assert_eq!((task.chain.len(), task.chain[0].attempt), (1, 2));
        assert_eq!(new.spec.parent_token, "", "a secret is not stored");
        deep.parent.as_mut().unwrap().chain = vec![pb::ChainLink::default(); CHAIN_MAX];
        assert!(NewTask::check(deep, &at).is_err(), "a circle ends");
    }

    proptest! {
        #[test]
        fn nesting_is_allowed_up_to_the_bound(depth in 1..60_usize) {
            prop_assert_eq!(check_part(&data(depth), "p").is_ok(), depth <= DEPTH_MAX);
        }
    }
}
