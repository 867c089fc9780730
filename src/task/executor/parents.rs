//! What the homes of this sidecar ask of the attempts that run here, by their tokens.

use std::{sync::Arc, time::Duration};

use tokio::sync::broadcast;

use super::engine::Executor;
use crate::domain::Fault;
use crate::task::doors::{Drawing, Parent, Parents};

impl Parents for Executor {
    fn parent(&self, token: &str) -> Option<Parent> {
        self.shared.tokens.parent(token)
    }

    fn take(&self, token: &str, most: u32) -> Result<u32, Fault> {
        self.shared.tokens.take(token, most)
    }

    fn draw(&self, token: &str, count: u32, within: Option<Duration>) -> Drawing {
        let (shared, token) = (Arc::clone(&self.shared), token.to_owned());
        Box::pin(async move { shared.tokens.draw(&token, count, within).await })
    }

    fn keep_for(&self, token: &str) {
        self.shared.tokens.keep_for(token);
    }

    fn let_go(&self, token: &str) {
        self.shared.tokens.let_go(token);
    }

    fn left(&self, token: &str) -> u32 {
        self.shared.tokens.left(token)
    }

    fn give_back(&self, token: &str, count: u32) {
        self.shared.tokens.give_back(token, count);
    }

    fn lives(&self, token: &str) -> bool {
        self.shared.tokens.lives(token)
    }

    fn over(&self) -> broadcast::Receiver<Arc<str>> {
        self.shared.tokens.over()
    }
}
