//! A disk in memory that loses what was not synced, fails when told to, and can be full.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use rand::Rng;
use rand::rngs::StdRng;

use super::disk::{Disk, DiskFile};

/// What reaches a real disk in one piece.
const SECTOR: usize = 512;

/// Clones are the same disk.
#[derive(Debug, Clone, Default)]
pub(super) struct FaultyDisk {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    files: Vec<Content>,
    names: BTreeMap<String, usize>,
    /// Names as they are after each operation that was not synced; the first is durable.
    past_names: Vec<BTreeMap<String, usize>>,
    /// Operations until one fails.
    fail_in: Option<u32>,
    /// Longest file that there is room for.
    room: Option<u64>,
    syncs: u64,
}

#[derive(Debug, Default)]
struct Content {
    live: Vec<u8>,
    durable: Vec<u8>,
    /// Offsets and bytes that a sync would bring to disk.
    dirty: Vec<(usize, Vec<u8>)>,
}

impl FaultyDisk {
    /// The operation after `operations` more ones fails, once.
    pub(super) fn fail_in(&self, operations: u32) {
        self.state.lock().fail_in = Some(operations);
    }

    pub(super) fn set_room(&self, room: Option<u64>) {
        self.state.lock().room = room;
    }

    pub(super) fn syncs(&self) -> u64 {
        self.state.lock().syncs
    }

    /// The process ends; what the system has stays.
    pub(super) fn restart(&self) {
        self.state.lock().fail_in = None;
    }

    /// The machine ends: any of what was not synced is there, or not.
    pub(super) fn power_loss(&self, random: &mut StdRng) {
        let mut state = self.state.lock();
        state.fail_in = None;
        if !state.past_names.is_empty() {
            let kept = random.random_range(0..=state.past_names.len());
            if let Some(names) = state.past_names.get(kept).cloned() {
                state.names = names;
            }
            state.past_names.clear();
        }
        let odds = [0.0, 0.1, 0.5, 0.9, 1.0][random.random_range(0..5)];
        for file in &mut state.files {
            for (offset, bytes) in std::mem::take(&mut file.dirty) {
                for (index, sector) in bytes.chunks(SECTOR).enumerate() {
                    if random.random_bool(odds) {
                        overwrite(&mut file.durable, offset + index * SECTOR, sector);
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
    pub(super) fn damage(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.state.lock();
        let id = state.names[name];
        let file = &mut state.files[id];
        change(&mut file.live);
        file.durable = file.live.clone();
        file.dirty.clear();
    }

    /// A disk of its own with the same files.
    pub(super) fn copy(&self) -> Self {
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

    pub(super) fn read(&self, name: &str) -> Vec<u8> {
        let state = self.state.lock();
        state.files[state.names[name]].live.clone()
    }
}

impl State {
    fn operation(&mut self) -> io::Result<()> {
        match &mut self.fail_in {
            Some(0) => {
                self.fail_in = None;
                Err(io::Error::other("the disk gave up"))
            }
            Some(left) => {
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
        let id = self
            .state
            .lock()
            .names
            .get(name)
            .copied()
            .ok_or(io::ErrorKind::NotFound)?;
        Ok(Box::new(FaultyFile {
            disk: self.clone(),
            id,
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
        let state = self.disk.state.lock();
        let offset = usize::try_from(offset).unwrap();
        let bytes = state.files[self.id].live.get(offset..offset + into.len());
        into.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.disk.state.lock();
        state.operation()?;
        let file = &mut state.files[self.id];
        let offset = usize::try_from(offset).unwrap();
        overwrite(&mut file.live, offset, bytes);
        file.dirty.push((offset, bytes.to_vec()));
        Ok(())
    }

    fn allocate(&self, size: u64) -> io::Result<()> {
        let mut state = self.disk.state.lock();
        state.operation()?;
        if state.room.is_some_and(|room| size > room) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let file = &mut state.files[self.id];
        let size = usize::try_from(size).unwrap().max(file.live.len());
        file.live.resize(size, 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.disk.state.lock();
        let answer = state.operation();
        state.syncs += 1;
        let file = &mut state.files[self.id];
        // As the kernel does it: after an error the pages are clean, and lost.
        let dirty = std::mem::take(&mut file.dirty);
        answer?;
        for (offset, bytes) in dirty {
            overwrite(&mut file.durable, offset, &bytes);
        }
        file.durable.resize(file.live.len(), 0);
        Ok(())
    }
}

fn overwrite(content: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    let end = offset + bytes.len();
    if content.len() < end {
        content.resize(end, 0);
    }
    content[offset..end].copy_from_slice(bytes);
}
