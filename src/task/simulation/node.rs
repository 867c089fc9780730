//! A sidecar: the real home, executor and log over a simulated disk, life after life.
//!
//! The log's writer is a task that steps it, with pauses as a disk makes them.

use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, sleep};

use crate::domain::{InstanceId, SpiffeId};
use crate::runtime::{Nursery, Stop, watch};
use crate::task::attach::Desk;
use crate::task::courier::Courier;
use crate::task::doors::{Connect, Route};
use crate::task::executor::{Executor, ExecutorConfig, HomePeer};
use crate::task::home::{Home, HomeConfig, LOST_AFTER, Replay};
use crate::task::journal::faulty::{Fault, FaultyDisk};
use crate::task::journal::{Journal, JournalConfig, JournalError, Step, Writer};

use super::World;
use super::agent::{Agent, SKILLS};
use super::attached;
use super::callbacks::Receiver;
use super::catalog::Sight;
use super::wire::{Door, Way};

/// Content of more bytes stands beside the log: most of what is said does, and some does not.
pub(super) const LARGE: usize = 12;
/// How long a process whose log has failed goes on at most.
const LAST_WORDS: u64 = 300;

/// Agents without a port, of all.
const ATTACHED: f64 = 0.4;

/// How a process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// The process alone: what the system has of its disk stays.
    Killed,
    /// The machine: what was not synced is there or not, and nobody is told.
    PowerLoss,
    /// As it was asked to, with all on disk.
    Stopped,
}

/// A machine with a sidecar and its agent.
pub(super) struct Node {
    pub(super) index: usize,
    pub(super) instance: InstanceId,
    pub(super) own: Arc<SpiffeId>,
    pub(super) disk: FaultyDisk,
    pub(super) agent: Arc<Agent>,
    life: Mutex<Option<Arc<Life>>>,
    /// Number of the current life, 0 while there is none.
    pub(super) lives: watch::Sender<u32>,
    /// The disk is slow until then.
    slow: Mutex<Option<Instant>>,
}

/// One run of the sidecar's process.
pub(super) struct Life {
    pub(super) number: u32,
    pub(super) home: Home,
    pub(super) executor: Executor,
    pub(super) journal: Journal,
    /// Where others reach it.
    pub(super) door: Arc<Door>,
    /// How it reaches others.
    pub(super) way: Arc<Way>,
    /// Told when it ends.
    pub(super) dead: Stop,
    nursery: Nursery,
    io: Nursery,
    end: Mutex<(Ending, Duration)>,
}

impl Node {
    /// What its agent is called.
    pub(super) fn agent_name(&self) -> String {
        format!("default/n{}", self.index)
    }

    pub(super) fn new(index: usize, world: Weak<World>, seed: u64) -> Self {
        let own = format!("spiffe://attache.local/ns/default/agent/n{index}");
        Self {
            index,
            instance: format!("i{index}").parse().unwrap(),
            own: Arc::new(own.parse().unwrap()),
            disk: FaultyDisk::seeded(seed ^ (index as u64 + 1) << 32),
            agent: Arc::new(Agent::new(world, index)),
            life: Mutex::default(),
            lives: watch::Sender::new(0),
            slow: Mutex::default(),
        }
    }

    pub(super) fn life(&self) -> Option<Arc<Life>> {
        self.life.lock().clone()
    }

    pub(super) fn peer(&self) -> HomePeer {
        HomePeer {
            id: SpiffeId::clone(&self.own),
            instance: self.instance.clone(),
        }
    }

    /// Its syncs take long until then.
    pub(super) fn slow_until(&self, until: Instant) {
        *self.slow.lock() = Some(until);
    }

    /// Waits for the process to be there.
    pub(super) async fn up(&self) -> Arc<Life> {
        let mut lives = self.lives.subscribe();
        loop {
            if let Some(life) = self.life() {
                return life;
            }
            drop(lives.changed().await);
        }
    }

    /// Ends the process now, and starts it again after `away`. Nothing that it does from here on
    /// reaches anybody.
    pub(super) fn end(&self, world: &World, how: Ending, away: Duration) {
        let Some(life) = self.life.lock().take() else {
            return;
        };
        world.note(format_args!(
            "life {} of {} ends, {how:?}, for {away:?}",
            life.number, self.index
        ));
        world
            .network
            .cut(world, self.index, how == Ending::PowerLoss);
        self.disk.kill();
        *life.end.lock() = (how, away);
        self.lives.send_replace(0);
        world.catalog.went(world, self.index, life.number);
        life.dead.cancel();
    }

    /// Lives again and again.
    pub(super) async fn live(world: Arc<World>, index: usize) {
        let node = &world.nodes[index];
        let (mut number, mut failed) = (0, 0);
        loop {
            number += 1;
            let life = match node.boot(&world, number) {
                Ok(life) => Arc::new(life),
                // Of those that were made before it was calm, one may be left.
                Err(JournalError::Io { .. }) if !world.is_calm() || failed < 2 => {
                    failed += u32::from(world.is_calm());
                    node.fall();
                    sleep(world.within(10, 2000)).await;
                    continue;
                }
                Err(refused) => {
                    let how = format!("I1: the log of {index} does not open: {refused}");
                    world.history.lock().breach(how);
                    return;
                }
            };
            world.note(format_args!("life {number} of {index} begins"));
            failed = 0;
            *node.life.lock() = Some(Arc::clone(&life));
            node.lives.send_replace(number);
            world.catalog.came(&world, index, number);
            life.dead.cancelled().await;
            life.nursery.abort().await;
            life.io.abort().await;
            let (how, away) = *life.end.lock();
            match how {
                Ending::Killed | Ending::Stopped => node.disk.restart(),
                Ending::PowerLoss => node.disk.power_loss(),
            }
            drop(life);
            sleep(away).await;
        }
    }

    /// After a start that the disk did not let through.
    fn fall(&self) {
        if self.disk.is_dead() {
            self.disk.power_loss();
        } else {
            self.disk.restart();
        }
    }

    /// A start may fail, or the first writes after it.
    fn threaten(&self, world: &World) {
        if !world.is_calm() && world.chance(0.15) {
            let fault = if world.chance(0.5) {
                Fault::Crash
            } else {
                Fault::Error
            };
            self.disk.plan(world.roll(0..30), fault);
            world.fault("disk at start", format_args!("{} {fault:?}", self.index));
        }
    }

    fn boot(&self, world: &Arc<World>, number: u32) -> Result<Life, JournalError> {
        self.disk.set_room(None);
        self.threaten(world);
        let segment_bytes = world.size.segment_bytes;
        let config = JournalConfig {
            segment_bytes,
            pending_bytes: 1 << 20,
            disk_reserve: segment_bytes,
            large_bytes: LARGE,
        };
        let mut replay = Replay::new(&self.instance, 2);
        let disk = Box::new(self.disk.clone());
        let (journal, writer) =
            Journal::on_disk(disk, config, |lsn, record| replay.record(lsn, &record))?;
        let boot_id = format!("{}-{number}", self.index);
        let config = ExecutorConfig {
            own: SpiffeId::clone(&self.own),
            slots: world.roll(3..12),
            boot_id,
            skills: SKILLS.map(String::from).into_iter().collect(),
        };
        let (nursery, io) = (Nursery::here(), Nursery::here());
        let executor = self.executor(world, config, &nursery);
        let config = HomeConfig {
            instance: self.instance.clone(),
            own: SpiffeId::clone(&self.own),
            lost_after: LOST_AFTER,
            descendants: world.size.descendants,
        };
        let route: Arc<dyn Route> = Arc::new(Sight(Arc::downgrade(world)));
        let way = Arc::new(Way::new(world, self.index, number, nursery.clone()));
        let connect: Arc<dyn Connect> = way.clone();
        let door = Door::new(world, self.index, executor.clone(), nursery.clone());
        let parents = Arc::new(executor.clone());
        let nurseries = vec![nursery.clone()];
        let records = (journal.clone(), replay);
        let home = Home::on(config, records, &route, &connect, parents, nurseries);
        let home = home.map_err(|wrong| JournalError::Damaged {
            file: "its records".into(),
            offset: 0,
            reason: wrong.to_string(),
        })?;
        let courier = Courier::new(home.clone(), Arc::new(Receiver(Arc::downgrade(world))));
        let carries = nursery.clone();
        nursery.start("courier", |stop| courier.run(carries, stop));
        io.adopt(
            "writer",
            drive(Arc::downgrade(world), self.index, number, writer),
        );
        Ok(Life {
            number,
            home,
            executor,
            journal,
            door,
            way,
            dead: Stop::new(),
            nursery,
            io,
            end: Mutex::new((Ending::Killed, Duration::ZERO)),
        })
    }

    /// An executor whose agent has a port, or attaches.
    fn executor(&self, world: &Arc<World>, config: ExecutorConfig, nursery: &Nursery) -> Executor {
        let nurseries = vec![nursery.clone()];
        if !world.chance(ATTACHED) {
            return Executor::new(config, self.agent.clone(), nurseries);
        }
        let desk = Desk::new(self.instance.clone(), nurseries.clone());
        let executor = Executor::new(config, Arc::new(desk.clone()), nurseries);
        let attended = attached::attend(desk.clone(), executor.clone());
        nursery.adopt("attend", attended);
        let world = Arc::downgrade(world);
        let attached = attached::attach(world, self.index, desk, nursery.clone());
        nursery.adopt("attached", attached);
        executor
    }

    /// How long the disk takes now.
    fn lag(&self, world: &World) -> Duration {
        let slow = self.slow.lock().is_some_and(|until| Instant::now() < until);
        // A sync takes long now and then, on any disk.
        if slow || world.size.faults && world.chance(0.04) {
            world.within(100, 1500)
        } else {
            world.within(0, 4)
        }
    }
}

/// Steps the writer of a life until it stops.
async fn drive(world: Weak<World>, index: usize, number: u32, mut writer: Writer) {
    loop {
        let Some(here) = world.upgrade() else { return };
        let node = &here.nodes[index];
        let lag = node.lag(&here);
        drop(here);
        sleep(lag).await;
        match writer.step(Instant::now()) {
            Step::Worked => {}
            Step::Idle { until } => writer.due(until).await,
            Step::Stopped => {
                if let Some(world) = world.upgrade() {
                    stopped(&world, index, number);
                }
                return;
            }
        }
    }
}

/// A log that failed ends its process: at once where that was the fault, else soon.
fn stopped(world: &Arc<World>, index: usize, number: u32) {
    let node = &world.nodes[index];
    let Some(life) = node.life().filter(|life| life.number == number) else {
        return;
    };
    if !life.journal.failed() {
        return;
    }
    let how = if world.chance(0.6) {
        Ending::PowerLoss
    } else {
        Ending::Killed
    };
    if node.disk.is_dead() {
        return node.end(world, how, world.downtime());
    }
    let later = Arc::clone(world);
    world.crew.adopt("failed log", async move {
        sleep(later.within(0, LAST_WORDS)).await;
        let node = &later.nodes[index];
        if node.life().is_some_and(|life| life.number == number) {
            node.end(&later, how, later.downtime());
        }
    });
}
