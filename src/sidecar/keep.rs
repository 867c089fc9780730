//! Where a sidecar keeps its tasks: the journal that is read at the start, the archive beside it, and
//! the home over both.

use std::sync::Arc;

use super::{
    balancer::Balancer, carry::Carrier, config::Journaling, error::SidecarError, pools::Pools,
    run::Parts,
};
use crate::{
    runtime::DataThreads,
    task::{
        Connect, Parents, Route,
        archive::{Archive, ArchiveConfig},
        descendants::DESCENDANTS_MAX,
        executor::Executor,
        home::{Home, HomeConfig, Keeping, Replay},
        journal::{Journal, JournalConfig},
    },
};

impl Parts {
    /// The home, with all that its journal has.
    ///
    /// # Errors
    /// When what is on disk cannot be read.
    pub(super) fn home(
        &self,
        threads: &DataThreads,
        (balancer, route): (Arc<Balancer>, Arc<dyn Route>),
        pools: &Pools,
        executor: &Executor,
    ) -> Result<Home, SidecarError> {
        let keeping = self.keeping()?;
        let mut replay = Replay::keeping(&self.instance, threads.count(), keeping);
        let config = JournalConfig {
            segment_bytes: self.config.journal_segment,
            disk_reserve: self.config.disk_reserve,
            ..Default::default()
        };
        let dir = self.config.state.join("journal");
        let journal = match self.config.journal {
            Journaling::Disk => {
                Journal::open(&dir, config, |lsn, record| replay.record(lsn, &record))?
            }
            Journaling::Memory => {
                tracing::warn!("tasks are kept in memory only: a restart loses them");
                Journal::memory()
            }
        };
        self.progress.journals(journal.clone());
        let connect: Arc<dyn Connect> = Arc::new(Carrier {
            own: self.id.clone(),
            instance: self.instance.clone(),
            executor: executor.clone(),
            balancer,
            pools: pools.clone(),
            calls: self.progress.calls(),
        });
        let parents: Arc<dyn Parents> = Arc::new(executor.clone());
        let config = HomeConfig {
            instance: self.instance.clone(),
            own: self.id.clone(),
            lost_after: self.config.agent_lost_after,
            descendants: DESCENDANTS_MAX,
        };
        Home::start(
            config,
            (journal, replay),
            &route,
            &connect,
            parents,
            threads,
        )
        .map_err(|error| SidecarError::Records(error.to_string()))
    }

    /// What is kept of finished tasks: with a journal on disk they go to an archive beside it.
    fn keeping(&self) -> Result<Keeping, SidecarError> {
        let retention = self.config.retention;
        let archive = if self.config.journal.is_disk() {
            let config = ArchiveConfig::new(self.config.state.join("archive.redb"), retention);
            let archive = Archive::start(config, self.instance.as_str())
                .map_err(|error| SidecarError::Records(error.to_string()))?;
            self.progress.archives(archive.clone());
            Some(archive)
        } else {
            None
        };
        Ok(Keeping {
            retention,
            archive,
            in_memory: self.config.finished_in_memory,
        })
    }
}
