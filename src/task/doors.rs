//! The doors between the home, the executor and whoever carries messages between them.
//!
//! Only traits and the plain values that pass through them: nothing here decides.

use std::{fmt, pin::Pin, sync::Arc, time::Duration};

use semver::Version;
use tokio::{
    sync::{broadcast, watch},
    time::Instant,
};
use tokio_stream::Stream;
use tonic::Status;

use crate::contract;
use crate::domain::{AgentName, Fault, InstanceId, Label, Reason, SpiffeId};
use crate::pb;
use crate::resilience::{Injected, Permit};
use crate::telemetry::TraceContext;

use super::descendants::DESCENDANTS_MAX;

/// What a home looks for when it gives out an attempt.
pub struct Want<'a> {
    /// The caller's namespace: a bare skill or agent name is looked up in it.
    pub namespace: &'a Label,
    /// What has to fit; its skill is never empty.
    pub selector: &'a pb::Selector,
    /// Who submitted the task.
    pub caller: &'a SpiffeId,
    /// Tasks of one context go to one instance while that can be; empty: it has none.
    pub context: &'a str,
    /// Where its last attempt asked what is answered now: best there again.
    pub prefer: Option<&'a InstanceId>,
    /// Where the task was lost or could not be started: nowhere of these while calls flow to any
    /// other that fits.
    pub exclude: &'a [InstanceId],
    /// What the first try was to meet: only who offers something compatible fits.
    pub contract: Option<&'a Contract>,
    /// A try after one that failed: it is taken out of the budget.
    pub again: bool,
    /// Whether the task may go to this agent at all.
    pub admits: &'a dyn Fn(&AgentName) -> bool,
    /// Whether an instance may get one more attempt now.
    pub allows: &'a dyn Fn(&InstanceId) -> bool,
}

/// What an agent promises about a skill.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contract {
    /// Version of the skill; `None`: its card names none.
    pub version: Option<Version>,
    /// SHA-256 over both schemas; empty: it has none.
    pub schemas: Vec<u8>,
}

impl Contract {
    /// Whether work that was meant for `other` can go here: the same major version (below 1.0 the
    /// same minor one), and the same schemas. Who says nothing contradicts nothing.
    pub fn fits(&self, other: &Self) -> bool {
        let versions = match (&self.version, &other.version) {
            (Some(one), Some(other)) if one.major == 0 && other.major == 0 => {
                one.minor == other.minor
            }
            (Some(one), Some(other)) => one.major == other.major,
            (None, _) | (_, None) => true,
        };
        let unsaid = self.schemas.is_empty() || other.schemas.is_empty();
        versions && (unsaid || self.schemas == other.schemas)
    }
}

/// The schemas that an agent has promised for a skill: which they are, and whom to ask for them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Promise {
    /// `namespace/name` of the agent.
    pub agent: String,
    /// SHA-256 over both schemas; never empty.
    pub schemas: Vec<u8>,
    /// Media types that the skill takes; empty: any.
    pub input_modes: Vec<String>,
}

/// An instance that fits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Where the attempt would run.
    pub instance: InstanceId,
    /// Whose skill it is.
    pub agent: AgentName,
    /// Whether its card says that the skill may run twice.
    pub idempotent: bool,
    /// Which run of the instance's process; empty: not known.
    pub boot_id: String,
    /// What it promises about the skill.
    pub contract: Contract,
    /// It asks for the tasks that may be made below an attempt as they are needed.
    pub wants_descendants: bool,
}

/// One call on its way to an instance.
#[derive(Debug, Default)]
pub struct Call {
    /// What it counts as there, and who hears how it went.
    pub permit: Permit,
    /// What is done to it on purpose.
    pub injected: Injected,
    /// How long its executor may take until its first word; `None`: as long as usual.
    pub patience: Option<Duration>,
}

/// Who gets an attempt.
#[derive(Debug)]
pub enum Pick {
    /// This one, counted from now on.
    Go(Arc<Candidate>, Box<Call>),
    /// Nobody that fits can take it now; where it is known when that may change: at that time.
    Busy(Option<Instant>),
    /// Everybody that fits has failed too often; where that is known: until then.
    Ejected(Option<Instant>),
    /// So many tries of late were second ones that this one has to wait until then.
    OverBudget(Instant),
    /// Nobody fits.
    Nobody,
}

/// Who could run a task now.
pub trait Route: Send + Sync + 'static {
    /// Chooses one of the live instances that fit; the own agent is among them.
    fn pick(&self, want: &Want<'_>, now: Instant) -> Pick;

    /// What those promise who could run this now; empty where one of them promises nothing.
    fn promises(&self, namespace: &Label, selector: &pb::Selector) -> Vec<Promise> {
        let (_, _) = (namespace, selector);
        Vec::new()
    }

    /// Whether all who could run this now ask for the tasks that may be made below an attempt: to
    /// others a share has to be given beforehand.
    fn wants_descendants(&self, namespace: &Label, selector: &pb::Selector) -> bool {
        let (_, _) = (namespace, selector);
        true
    }

    /// The schemas of a promise, where they are at hand; where not, they may be the next time.
    fn promised(&self, promise: &Promise) -> Option<Arc<contract::Contract>> {
        let _ = promise;
        None
    }

    /// Moves on whenever an answer of [`Route::pick`] may have become different.
    fn changes(&self) -> watch::Receiver<u64>;
}

/// What an executor says about one attempt, in order.
pub type Updates = Pin<Box<dyn Stream<Item = Result<pb::ExecuteResponse, Status>> + Send>>;

/// What a home says about one attempt: Start or Resume, then Ack and Abort.
pub type Steps = Pin<Box<dyn Stream<Item = pb::ExecuteRequest> + Send>>;

/// What a home says about who waits at it, for one executor.
pub type Claims = Pin<Box<dyn Stream<Item = pb::SlotsRequest> + Send>>;

/// Slots that an executor grants to a home.
pub type Grants = Pin<Box<dyn Stream<Item = Result<pb::SlotsResponse, Status>> + Send>>;

/// Carries an attempt's stream to an instance.
#[tonic::async_trait]
pub trait Connect: Send + Sync + 'static {
    /// Opens `Executor.Execute` at `instance`; in process where it is the own one. `call` is what
    /// [`Route::pick`] gave; `None`: an attempt that was given out before is taken up again. `trace`
    /// goes with it.
    ///
    /// # Errors
    /// A status with reason PEER_UNREACHABLE, PEER_MISMATCH or FAULT_INJECTED: nothing of `steps`
    /// was sent. Any other: it may have been.
    async fn execute(
        &self,
        instance: &InstanceId,
        steps: Steps,
        call: Option<Box<Call>>,
        trace: Option<&TraceContext>,
    ) -> Result<Updates, Status>;

    /// Opens `Executor.Slots` at `instance`; in process where it is the own one.
    ///
    /// # Errors
    /// Any status: without such a stream, attempts are offered until they are taken.
    async fn slots(&self, instance: &InstanceId, claims: Claims) -> Result<Grants, Status> {
        drop(claims);
        Err(Fault::unimplemented(&format!("Slots at {instance}")).into())
    }
}

/// The attempt that a handler works on while it submits a child.
#[derive(Clone, Debug)]
pub struct Parent {
    /// The task, BASIC view.
    pub task: pb::Task,
    /// Its current attempt, from 1.
    pub attempt: u32,
    /// When the attempt ends at the latest.
    pub deadline: Instant,
    /// The hops so far, the root first.
    pub chain: Vec<pb::ChainLink>,
    /// What the handler was called with: a child that brings no context of its own goes below it.
    pub trace: Option<TraceContext>,
}

/// Waits for tasks that may be made below an attempt; gives how many. Refused with
/// PARENT_TOKEN_INVALID, DESCENDANTS_EXHAUSTED, HOME_UNAVAILABLE.
pub type Drawing = Pin<Box<dyn Future<Output = Result<u32, Fault>> + Send>>;

/// The answer to who would make more tasks than the tree may have.
pub fn descendants_exhausted() -> Fault {
    let text = format!(
        "a root may have {DESCENDANTS_MAX} tasks below it, at all depths and in all attempts, and they are made: do the work in the task at hand, or have it done below another root, submitted without parent_token"
    );
    Fault::new(Reason::DescendantsExhausted, text)
}

/// Tasks that were taken out of what an attempt may have made below it; those that are not spent go
/// back with it.
#[derive(Debug)]
pub struct Fare {
    parents: Arc<dyn Parents>,
    token: String,
    count: u32,
}

impl Fare {
    /// Of so many, which were taken.
    pub fn taken(parents: Arc<dyn Parents>, token: String, count: u32) -> Self {
        Self {
            parents,
            token,
            count,
        }
    }

    /// How many.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// They are made, or a child's to make.
    pub fn spend(mut self) {
        self.count = 0;
    }
}

impl Drop for Fare {
    fn drop(&mut self) {
        if self.count > 0 {
            self.parents.give_back(&self.token, self.count);
        }
    }
}

/// Knows the attempts that run on this sidecar by their secret token.
pub trait Parents: Send + Sync + 'static {
    /// The attempt that `token` was made for, while it runs and is wanted: it may get children.
    fn parent(&self, token: &str) -> Option<Parent>;

    /// Takes up to so many of the tasks that the attempt has in hand for what is made below it; 0: it
    /// has none, see [`Parents::draw`].
    ///
    /// # Errors
    /// PARENT_TOKEN_INVALID.
    fn take(&self, token: &str, most: u32) -> Result<u32, Fault> {
        let (_, _) = (token, most);
        Ok(0)
    }

    /// Takes up to so many, at least one, and waits until the homes above have given them; no longer
    /// than `within`, where that is set, else until the attempt ends. Dropped, it has taken none.
    fn draw(&self, token: &str, count: u32, within: Option<Duration>) -> Drawing {
        let (_, _, _) = (token, count, within);
        Box::pin(async { Err(descendants_exhausted()) })
    }

    /// So many of those were not needed.
    fn give_back(&self, token: &str, count: u32) {
        let (_, _) = (token, count);
    }

    /// A detached child of the attempt was made: what that has in hand at its end is for such children.
    fn keep_for(&self, token: &str) {
        let _ = token;
    }

    /// One of those has ended.
    fn let_go(&self, token: &str) {
        let _ = token;
    }

    /// How many more may be made in the tree, as far as is known here.
    fn left(&self, token: &str) -> u32 {
        let _ = token;
        0
    }

    /// Whether there is such an attempt; who only asks does not become its child.
    fn lives(&self, token: &str) -> bool;

    /// Tokens that may have children, as their attempts end or are not wanted any more. Who lags
    /// behind asks for each that it knows.
    fn over(&self) -> broadcast::Receiver<Arc<str>>;
}

macro_rules! opaque {
    ($($door:ident),*) => {$(
        impl fmt::Debug for dyn $door {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(stringify!($door))
            }
        }
    )*};
}

opaque!(Route, Connect, Parents);

impl fmt::Debug for Want<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Want")
            .field("selector", &self.selector)
            .field("exclude", &self.exclude)
            .field("again", &self.again)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_moves_only_to_what_promises_the_same() {
        let contract = |version: &str, schemas: u8| Contract {
            version: version.parse().ok(),
            schemas: if schemas == 0 { vec![] } else { vec![schemas] },
        };
        for (first, next, fits) in [
            (("1.2.0", 7), ("1.9.4", 7), true),
            (("1.2.0", 7), ("2.0.0", 7), false),
            (("0.3.1", 7), ("0.3.9", 7), true),
            (("0.3.1", 7), ("0.4.0", 7), false),
            (("0.3.1", 7), ("1.3.1", 7), false),
            (("1.2.0", 7), ("1.2.0", 8), false),
            (("1.2.0", 7), ("1.2.0", 0), true),
            (("1.2.0", 0), ("1.2.0", 8), true),
            (("", 7), ("2.0.0", 7), true),
            (("", 7), ("", 8), false),
        ] {
            let (a, b) = (contract(first.0, first.1), contract(next.0, next.1));
            assert_eq!(b.fits(&a), fits, "{first:?} {next:?}");
            assert_eq!(a.fits(&b), fits, "{next:?} {first:?}");
        }
    }
}
