//! Tasks that end with the attempt that made them. Pure, but for waiting for the end of those.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use tokio::sync::broadcast;
use uuid::Uuid;

/// The children of a shard, by themselves and by their parent's token.
#[derive(Debug, Default)]
pub(super) struct Children {
    token: BTreeMap<Uuid, String>,
    of: BTreeMap<String, BTreeSet<Uuid>>,
}

impl Children {
    pub(super) fn add(&mut self, task: Uuid, token: String) {
        self.of.entry(token.clone()).or_default().insert(task);
        self.token.insert(task, token);
    }

    /// The task has ended, or does not end with its parent any more. Gives its parent's token.
    pub(super) fn remove(&mut self, task: Uuid) -> Option<String> {
        let token = self.token.remove(&task)?;
        if let Some(all) = self.of.get_mut(&token) {
            all.remove(&task);
            if all.is_empty() {
                self.of.remove(&token);
            }
        }
        Some(token)
    }

    /// Those of one token, which is over.
    pub(super) fn take(&mut self, token: &str) -> BTreeSet<Uuid> {
        let all = self.of.remove(token).unwrap_or_default();
        for task in &all {
            self.token.remove(task);
        }
        all
    }

    /// Those whose parent is over, as `lives` knows by its token.
    pub(super) fn orphans(&mut self, lives: impl Fn(&str) -> bool) -> BTreeSet<Uuid> {
        let over = self.of.keys().filter(|token| !lives(token));
        let over: Vec<_> = over.cloned().collect();
        over.iter().flat_map(|token| self.take(token)).collect()
    }
}

/// The next token that is over; `None`: some were missed. Waits for ever where no more come.
pub(super) async fn next_over(
    over: &mut Option<broadcast::Receiver<Arc<str>>>,
) -> Option<Arc<str>> {
    if let Some(tokens) = over {
        match tokens.recv().await {
            Ok(token) => return Some(token),
            Err(broadcast::error::RecvError::Lagged(_)) => return None,
            Err(broadcast::error::RecvError::Closed) => *over = None,
        }
    }
    std::future::pending().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_taken_once_with_its_own_parent() {
        let mut children = Children::default();
        let task = Uuid::from_u128;
        for (number, token) in [(1, "a"), (2, "a"), (3, "b"), (4, "c")] {
            children.add(task(number), token.into());
        }
        children.remove(task(2));
        children.remove(task(2));
        assert_eq!(children.take("a"), [task(1)].into());
        assert!(children.take("a").is_empty());
        assert_eq!(children.orphans(|token| token == "c"), [task(3)].into());
        assert!(children.orphans(|token| token == "c").is_empty());
        children.remove(task(4));
        assert!(children.of.is_empty() && children.token.is_empty());
    }
}
