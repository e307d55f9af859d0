//! Looks at the live tail by names alone: where it begins, where it ends.

use super::archive::WalArchive;
use super::error::RepoError;
use crate::postgres::{SegmentName, TimelineId};
use crate::storage::ObjectStoreExt;
use crate::storage::object_store::Visit;

impl WalArchive {
    /// The first segment of a timeline that has pieces.
    pub async fn oldest_tail(&self, timeline: TimelineId) -> Result<Option<SegmentName>, RepoError> {
        let mut found = None;
        self.store
            .visit_after(&self.layout.live_timeline(self.generation, timeline), None, 10, |listed| {
                found = self.layout.parse_live(&listed.name).map(|(_, piece)| piece.segment);
                if found.is_some() { Visit::Enough } else { Visit::More }
            })
            .await?;
        Ok(found)
    }

    /// The segments of a timeline that have pieces, from this one on.
    pub async fn tails_from(&self, first: SegmentName) -> Result<Vec<SegmentName>, RepoError> {
        let timeline = self.layout.live_timeline(self.generation, first.timeline);
        let before = self.layout.live_segment(self.generation, first);
        let mut found = Vec::new();
        self.store
            .visit_after(&timeline, Some(before.as_str()), 1000, |listed| {
                found.extend(self.layout.parse_live(&listed.name).map(|(_, piece)| piece.segment));
                found.dedup();
                Visit::More
            })
            .await?;
        Ok(found)
    }

    /// The offset of the last piece of a segment.
    pub async fn last_piece(&self, segment: SegmentName) -> Result<Option<u32>, RepoError> {
        let mut last = None;
        self.store
            .visit_after(&self.layout.live_segment(self.generation, segment), None, 1000, |listed| {
                last = self.layout.parse_live(&listed.name).map(|(_, piece)| piece.offset).or(last);
                Visit::More
            })
            .await?;
        Ok(last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::{Generation, Repository};
    use crate::storage::memory::MemoryStore;
    use crate::storage::{ObjectStore, UserMetadata};
    use std::sync::Arc;

    #[tokio::test]
    async fn names_tell_where_the_tail_is() {
        let store = Arc::new(MemoryStore::default());
        let archive = Repository::new(Arc::clone(&store) as _, "main".parse().unwrap()).archive(Generation::FIRST);
        let segment = |name: &str| name.parse::<SegmentName>().unwrap();
        let (first, second) = (segment("000000010000000000000003"), segment("000000010000000000000004"));
        assert_eq!(archive.oldest_tail(TimelineId::FIRST).await.unwrap(), None);
        for key in
            ["000000010000000000000003/00000000", "000000010000000000000003/00000A00", "000000010000000000000004/0"]
        {
            let key = format!("main/1/live/00000001/{key}.zst").parse().unwrap();
            store.put(&key, bytes::Bytes::from_static(b"x"), &UserMetadata::new()).await.unwrap();
        }
        assert_eq!(archive.oldest_tail(TimelineId::FIRST).await.unwrap(), Some(first));
        assert_eq!(archive.oldest_tail(TimelineId::new(2).unwrap()).await.unwrap(), None);
        assert_eq!(archive.tails_from(first).await.unwrap(), [first]);
        assert_eq!(archive.tails_from(second).await.unwrap(), []);
        assert_eq!(archive.last_piece(first).await.unwrap(), Some(0xA00));
        assert_eq!(archive.last_piece(second).await.unwrap(), None);
    }
}
