//! A disk in memory that loses what was not synced, tears what it writes, fails or dies when told
//! to, and can be full. Seeded: the same calls end the same way.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::disk::{Disk, DiskFile};

/// What reaches a real disk in one piece.
const SECTOR: usize = 512;

/// Clones are the same disk.
#[derive(Debug, Clone)]
pub(in crate::task) struct FaultyDisk {
    state: Arc<Mutex<State>>,
}

/// How a planned operation goes wrong. What it was to write may be there in part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::task) enum Fault {
    /// An error, once.
    Error,
    /// No room, once.
    Full,
    /// The process ends there: nothing after it does anything.
    Crash,
}

#[derive(Debug)]
struct State {
    random: StdRng,
    files: Vec<Content>,
    names: BTreeMap<String, usize>,
    /// Names as they are after each operation that was not synced; the first is durable.
    past_names: Vec<BTreeMap<String, usize>>,
    /// Operations until one goes wrong, and how.
    plan: Option<(u32, Fault)>,
    dead: bool,
    /// Bytes that all files together may have.
    room: Option<u64>,
    syncs: u64,
    written: u64,
    slow: Slow,
}

/// What others do while a sync takes its time.
#[derive(Default)]
struct Slow(Option<Box<dyn FnMut() + Send>>);

impl fmt::Debug for Slow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "slow" } else { "at once" })
    }
}

#[derive(Debug, Default)]
struct Content {
    live: Vec<u8>,
    durable: Vec<u8>,
    /// Offsets and bytes that a sync would bring to disk.
    dirty: Vec<(usize, Vec<u8>)>,
}

impl Default for FaultyDisk {
    fn default() -> Self {
        Self::seeded(0)
    }
}

impl FaultyDisk {
    pub(in crate::task) fn seeded(seed: u64) -> Self {
        let state = State {
            random: StdRng::seed_from_u64(seed),
            files: Vec::new(),
            names: BTreeMap::new(),
            past_names: Vec::new(),
            plan: None,
            dead: false,
            room: None,
            syncs: 0,
            written: 0,
            slow: Slow::default(),
        };
        Self {
            state: Arc::new(Mutex::new(state)),
        }
    }

    /// The operation after `operations` more ones goes wrong.
    pub(in crate::task) fn plan(&self, operations: u32, fault: Fault) {
        self.state.lock().plan = Some((operations, fault));
    }

    /// What was planned does not come.
    pub(in crate::task) fn relent(&self) {
        self.state.lock().plan = None;
    }

    /// The operation after `operations` more ones fails, once.
    pub(in crate::task) fn fail_in(&self, operations: u32) {
        self.plan(operations, Fault::Error);
    }

    /// Bytes that all files together may have; `None`: any.
    pub(in crate::task) fn set_room(&self, room: Option<u64>) {
        self.state.lock().room = room;
    }

    /// Bytes of all files.
    pub(in crate::task) fn used(&self) -> u64 {
        self.state.lock().used()
    }

    /// What happens during each sync.
    pub(in crate::task) fn during_sync(&self, act: Option<Box<dyn FnMut() + Send>>) {
        self.state.lock().slow.0 = act;
    }

    pub(in crate::task) fn syncs(&self) -> u64 {
        self.state.lock().syncs
    }

    /// Bytes that were written so far.
    pub(in crate::task) fn written(&self) -> u64 {
        self.state.lock().written
    }

    /// Nothing does anything any more, until it starts again.
    pub(in crate::task) fn kill(&self) {
        self.state.lock().dead = true;
    }

    /// Whether it was killed, or a planned crash has come.
    pub(in crate::task) fn is_dead(&self) -> bool {
        self.state.lock().dead
    }

    /// The process ends; what the system has stays.
    pub(in crate::task) fn restart(&self) {
        let mut state = self.state.lock();
        (state.plan, state.dead) = (None, false);
    }

    /// The machine ends: any of what was not synced is there, or not.
    pub(in crate::task) fn power_loss(&self) {
        let mut state = self.state.lock();
        let State {
            random,
            files,
            names,
            past_names,
            plan,
            dead,
            ..
        } = &mut *state;
        (*plan, *dead) = (None, false);
        if !past_names.is_empty() {
            let kept = random.random_range(0..=past_names.len());
            if let Some(past) = past_names.get(kept).cloned() {
                *names = past;
            }
            past_names.clear();
        }
        let odds = [0.0, 0.1, 0.5, 0.9, 1.0][random.random_range(0..5)];
        for file in files {
            for (offset, bytes) in std::mem::take(&mut file.dirty) {
                for (at, sector) in sectors(offset, &bytes) {
                    if random.random_bool(odds) {
                        overwrite(&mut file.durable, at, sector);
                    }
                }
            }
            if file.durable.len() < file.live.len() && random.random_bool(odds) {
                file.durable.resize(file.live.len(), 0);
            }
            file.live = file.durable.clone();
        }
    }

    /// Bytes of every file by name, to be damaged at will.
    pub(in crate::task) fn damage(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.state.lock();
        let id = state.names[name];
        let file = &mut state.files[id];
        change(&mut file.live);
        file.durable = file.live.clone();
        file.dirty.clear();
    }

    /// A disk of its own with the same files.
    pub(in crate::task) fn copy(&self) -> Self {
        let copy = Self::default();
        let state = self.state.lock();
        for (name, id) in &state.names {
            copy.create(name)
                .unwrap()
                .write_at(0, &state.files[*id].live)
                .unwrap();
        }
        copy
    }

    pub(in crate::task) fn read(&self, name: &str) -> Vec<u8> {
        let state = self.state.lock();
        state.files[state.names[name]].live.clone()
    }
}

impl State {
    /// Counts an operation; says how it goes wrong, if it does.
    fn operation(&mut self) -> io::Result<()> {
        if self.dead {
            return Err(io::Error::other("the process has ended"));
        }
        match &mut self.plan {
            Some((0, fault)) => {
                let fault = *fault;
                self.plan = None;
                self.dead = fault == Fault::Crash;
                Err(match fault {
                    Fault::Full => io::ErrorKind::StorageFull.into(),
                    Fault::Error | Fault::Crash => io::Error::other("the disk gave up"),
                })
            }
            Some((left, _)) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn rename_to(&mut self, names: BTreeMap<String, usize>) {
        let before = std::mem::replace(&mut self.names, names);
        self.past_names.push(before);
    }

    fn used(&self) -> u64 {
        let lengths = self.names.values().map(|id| self.files[*id].live.len());
        lengths.sum::<usize>() as u64
    }

    /// Whether a file may get this long.
    fn grows(&self, id: usize, size: usize) -> io::Result<()> {
        let more = size.saturating_sub(self.files[id].live.len()) as u64;
        match self.room {
            Some(room) if more > 0 && self.used() + more > room => {
                Err(io::ErrorKind::StorageFull.into())
            }
            _ => Ok(()),
        }
    }
}

impl Disk for FaultyDisk {
    fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let mut state = self.state.lock();
        state.operation()?;
        let id = state.files.len();
        state.files.push(Content::default());
        let mut names = state.names.clone();
        names.insert(name.to_owned(), id);
        state.rename_to(names);
        Ok(Box::new(FaultyFile {
            disk: self.clone(),
            id,
        }))
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let mut state = self.state.lock();
        state.operation()?;
        let id = state.names.get(name).copied();
        Ok(Box::new(FaultyFile {
            disk: self.clone(),
            id: id.ok_or(io::ErrorKind::NotFound)?,
        }))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.state.lock().names.keys().cloned().collect())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.state.lock();
        state.operation()?;
        let mut names = state.names.clone();
        let id = names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        names.insert(to.to_owned(), id);
        state.rename_to(names);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.state.lock();
        state.operation()?;
        let mut names = state.names.clone();
        names.remove(name).ok_or(io::ErrorKind::NotFound)?;
        state.rename_to(names);
        Ok(())
    }

    fn sync_dir(&self) -> io::Result<()> {
        let mut state = self.state.lock();
        state.operation()?;
        state.past_names.clear();
        Ok(())
    }

    fn free(&self) -> io::Result<u64> {
        let state = self.state.lock();
        let room = state.room.map(|room| room.saturating_sub(state.used()));
        Ok(room.unwrap_or(u64::MAX))
    }
}

#[derive(Debug)]
struct FaultyFile {
    disk: FaultyDisk,
    id: usize,
}

impl DiskFile for FaultyFile {
    fn size(&self) -> io::Result<u64> {
        Ok(self.disk.state.lock().files[self.id].live.len() as u64)
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let mut state = self.disk.state.lock();
        state.operation()?;
        let offset = usize::try_from(offset).unwrap();
        let bytes = state.files[self.id].live.get(offset..offset + into.len());
        into.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.disk.state.lock();
        let offset = usize::try_from(offset).unwrap();
        state.grows(self.id, offset + bytes.len())?;
        let was_dead = state.dead;
        let answer = state.operation();
        let written = match &answer {
            Ok(()) => bytes,
            Err(_) if was_dead => &[],
            Err(_) => &bytes[..state.random.random_range(0..=bytes.len())],
        };
        state.written += written.len() as u64;
        let file = &mut state.files[self.id];
        overwrite(&mut file.live, offset, written);
        file.dirty.push((offset, written.to_vec()));
        answer
    }

    fn allocate(&self, size: u64) -> io::Result<()> {
        let mut state = self.disk.state.lock();
        state.operation()?;
        let size = usize::try_from(size).unwrap();
        state.grows(self.id, size)?;
        let file = &mut state.files[self.id];
        let size = size.max(file.live.len());
        file.live.resize(size, 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        // Not under the lock: others use the disk meanwhile.
        let slow = self.disk.state.lock().slow.0.take();
        if let Some(mut act) = slow {
            act();
            self.disk.state.lock().slow.0 = Some(act);
        }
        let mut state = self.disk.state.lock();
        state.syncs += 1;
        if state.dead {
            return state.operation();
        }
        let answer = state.operation();
        let State { random, files, .. } = &mut *state;
        let file = &mut files[self.id];
        // As the kernel does it: after an error the pages are clean, and lost, though some of them
        // may have reached the disk.
        let odds = if answer.is_ok() { 1.0 } else { 0.5 };
        for (offset, bytes) in std::mem::take(&mut file.dirty) {
            for (at, sector) in sectors(offset, &bytes) {
                if random.random_bool(odds) {
                    overwrite(&mut file.durable, at, sector);
                }
            }
        }
        if answer.is_ok() {
            file.durable.resize(file.live.len(), 0);
        }
        answer
    }
}

/// The pieces of a write that reach the disk or not, with their offsets.
fn sectors(offset: usize, bytes: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let (mut at, mut rest) = (offset, bytes);
    std::iter::from_fn(move || {
        let piece = rest.len().min(SECTOR - at % SECTOR);
        let (sector, more) = rest.split_at(piece);
        let found = (piece > 0).then_some((at, sector));
        (at, rest) = (at + piece, more);
        found
    })
}

fn overwrite(content: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    let end = offset + bytes.len();
    if content.len() < end {
        content.resize(end, 0);
    }
    content[offset..end].copy_from_slice(bytes);
}
