//! What can be refused, and why: one closed list that logs, metrics and the wire share.
//!
//! Each component has an error enum of its own and turns it into a [`Fault`]; `wire::status` alone
//! turns a `Fault` into a gRPC status.

use std::{fmt, time::Duration};

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $label:literal,)*) => {
        /// Why something was refused or failed. Stable: programs match on its label.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Reason { $($(#[$doc])* $name,)* }

        impl Reason {
            /// Every reason there is, for tables and tests.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The stable name, as in `google.rpc.ErrorInfo.reason` and in metrics.
            pub fn label(self) -> &'static str {
                match self { $(Self::$name => $label,)* }
            }
        }
    };
}

reasons! {
    /// A field of the request breaks a bound or cannot be read.
    InvalidField = "INVALID_FIELD",
    /// A payload is larger than its bound.
    PayloadTooLarge = "PAYLOAD_TOO_LARGE",
    /// The input does not fit the skill's schema.
    InputInvalid = "INPUT_INVALID",
    /// The agent's result does not fit the skill's schema.
    OutputInvalid = "OUTPUT_INVALID",
    /// The schemas under this version of a skill were others before.
    ContractChanged = "CONTRACT_CHANGED",
    /// The contract has it, this version does not serve it yet.
    Unimplemented = "UNIMPLEMENTED",
    /// The caller may not do this.
    PermissionDenied = "PERMISSION_DENIED",
    /// A member spoke for somebody else than its certificate names.
    IdentityMismatch = "IDENTITY_MISMATCH",
    /// Only operators may do this.
    OperatorsOnly = "OPERATORS_ONLY",
    /// No verified identity came with the call.
    Unauthenticated = "UNAUTHENTICATED",
    /// No such task, or none that the caller may see.
    TaskNotFound = "TASK_NOT_FOUND",
    /// The task has ended already.
    TaskNotCancelable = "TASK_NOT_CANCELABLE",
    /// The task has ended, and takes no answer any more.
    TaskEnded = "TASK_ENDED",
    /// The task waits for no answer.
    TaskAsksNothing = "TASK_ASKS_NOTHING",
    /// The task has not asked this.
    QuestionNotFound = "QUESTION_NOT_FOUND",
    /// The question was answered otherwise.
    QuestionAnswered = "QUESTION_ANSWERED",
    /// No such artifact of this task.
    ArtifactNotFound = "ARTIFACT_NOT_FOUND",
    /// Another sidecar owns the task.
    HomeElsewhere = "HOME_ELSEWHERE",
    /// The sidecar that owns the task is away.
    HomeUnavailable = "HOME_UNAVAILABLE",
    /// The cursor is beyond the last event.
    SequenceAhead = "SEQUENCE_AHEAD",
    /// The events after this cursor are no longer kept.
    SequenceGone = "SEQUENCE_GONE",
    /// This sidecar takes tasks from outside only for its own agent's skills.
    NotOwnAgent = "NOT_OWN_AGENT",
    /// The parent token names no attempt that runs here.
    ParentTokenInvalid = "PARENT_TOKEN_INVALID",
    /// The agent works on this skill already, further up the chain that leads to the task.
    DelegationLoop = "DELEGATION_LOOP",
    /// The scope of the task above does not leave that agent or skill.
    OutOfScope = "OUT_OF_SCOPE",
    /// The root of the tree has as many tasks below it as it may.
    DescendantsExhausted = "DESCENDANTS_EXHAUSTED",
    /// No live agent offers what was asked for.
    NoRoute = "NO_ROUTE",
    /// The agent's process or its sidecar was lost while it worked.
    AgentLost = "AGENT_LOST",
    /// The agent failed, or broke the handler contract.
    AgentError = "AGENT_ERROR",
    /// The agent says more than a task may hold.
    ContentTooLarge = "CONTENT_TOO_LARGE",
    /// The agent's process cannot be reached by its sidecar; nothing was started.
    AgentUnavailable = "AGENT_UNAVAILABLE",
    /// The task's deadline has passed.
    DeadlineExceeded = "DEADLINE_EXCEEDED",
    /// The task was tried as often as is allowed.
    RetriesExhausted = "RETRIES_EXHAUSTED",
    /// The idempotency key stands for another request already.
    IdempotencyKeyReused = "IDEMPOTENCY_KEY_REUSED",
    /// Too much waits already.
    QueueFull = "QUEUE_FULL",
    /// The disk is nearly full: what is under way goes on, nothing new is taken.
    DiskFull = "DISK_FULL",
    /// All slots of the executor are taken.
    SlotsFull = "SLOTS_FULL",
    /// The process is about to stop.
    Draining = "DRAINING",
    /// An update of an attempt that is no longer the current one.
    AttemptStale = "ATTEMPT_STALE",
    /// The sidecar has no agent, or one that listens: none can attach.
    NotAttachable = "NOT_ATTACHABLE",
    /// The peer spoke against the protocol.
    ProtocolViolation = "PROTOCOL_VIOLATION",
    /// No such agent in the catalog.
    AgentNotFound = "AGENT_NOT_FOUND",
    /// The lease is unknown or has run out: register again.
    LeaseUnknown = "LEASE_UNKNOWN",
    /// No such traffic rule.
    RuleNotFound = "RULE_NOT_FOUND",
    /// The traffic rule is at another revision than expected: somebody else changed it.
    RuleChanged = "RULE_CHANGED",
    /// The registry keeps as many traffic rules as it may.
    RulesFull = "RULES_FULL",
    /// The page token is not one of ours, or belongs to another caller or filter.
    PageTokenInvalid = "PAGE_TOKEN_INVALID",
    /// The join token was used, has expired, or is for another id.
    TokenRefused = "TOKEN_REFUSED",
    /// Too many attempts failed lately.
    RateLimited = "RATE_LIMITED",
    /// The certificate to rejoin with, or the proof of its key, does not hold.
    RejoinRefused = "REJOIN_REFUSED",
    /// The certificate request cannot be used.
    InvalidCsr = "INVALID_CSR",
    /// The generation of the certificate is not the current one: somebody else renewed it.
    GenerationStale = "GENERATION_STALE",
    /// The peer could not be reached.
    PeerUnreachable = "PEER_UNREACHABLE",
    /// The peer is not who it was expected to be.
    PeerMismatch = "PEER_MISMATCH",
    /// A rehearsal of a fault, as the traffic rules ask for; nothing was sent.
    FaultInjected = "FAULT_INJECTED",
    /// The connection broke after the call was sent: it may have been processed.
    ConnectionLost = "CONNECTION_LOST",
    /// The journal could not be written; nothing more is acknowledged.
    StorageFailed = "STORAGE_FAILED",
    /// Content on the home's disk is not what it was, or is gone.
    ContentDamaged = "CONTENT_DAMAGED",
    /// A fault of ours.
    Internal = "INTERNAL",
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

/// A refusal on its way to whoever asked: a reason for programs, a sentence for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What programs match on.
    pub reason: Reason,
    /// What happened and what to do next, for people. Never holds a secret or a payload.
    pub text: String,
    /// Path of the request's field that is wrong, where one is.
    pub field: Option<String>,
    /// How long to wait before a retry can help; `None`: a retry does not help by itself.
    pub retry_after: Option<Duration>,
    /// Facts for programs, such as the endpoint of a task's home.
    pub metadata: Vec<(&'static str, String)>,
}

impl Fault {
    /// A fault with its sentence.
    pub fn new(reason: Reason, text: impl Into<String>) -> Self {
        Self {
            reason,
            text: text.into(),
            field: None,
            retry_after: None,
            metadata: Vec::new(),
        }
    }

    /// A field of the request that breaks a bound; `path` as in `spec.options.priority`.
    pub fn field(path: impl Into<String>, text: impl Into<String>) -> Self {
        Self {
            field: Some(path.into()),
            ..Self::new(Reason::InvalidField, text)
        }
    }

    /// Something of the contract that this version does not serve yet.
    pub fn unimplemented(what: &str) -> Self {
        Self::new(
            Reason::Unimplemented,
            format!("{what} is not served by this version; leave it unset"),
        )
    }

    /// The same fault, with the wait after which a retry may help.
    #[must_use]
    pub fn retry_after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }

    /// The same fault, with one more fact for programs.
    #[must_use]
    pub fn with(mut self, key: &'static str, value: impl Into<String>) -> Self {
        self.metadata.push((key, value.into()));
        self
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.reason, self.text)
    }
}

impl std::error::Error for Fault {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_stable_names_and_each_is_used_once() {
        let mut seen = std::collections::HashSet::new();
        for reason in Reason::ALL {
            let label = reason.label();
            assert!(
                label.bytes().all(|b| b.is_ascii_uppercase() || b == b'_'),
                "{label}"
            );
            assert!(seen.insert(label), "{label} twice");
        }
    }
}
