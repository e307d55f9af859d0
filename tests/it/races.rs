//! Writers at the same moment: of several contents one survives, and only its writers are told success.

use std::collections::BTreeSet;

use crate::data_dir::{FakeCluster, SYSTEM_ID};
use crate::program::finish;
use crate::repository::{Repository, segment_key};

#[test]
fn a_hundred_rounds_of_four_writers_with_two_contents() {
    for repository in Repository::both() {
        let clusters = [FakeCluster::new(), FakeCluster::new()];
        clusters[0].segment("000000010000000000000FFF", 1);
        repository.push(&clusters[0], "000000010000000000000FFF").run().quiet_success();
        let mut winners = BTreeSet::new();
        for round in 0..100u64 {
            let name = format!("0000000100000000{:08X}", round + 1);
            for (content, cluster) in clusters.iter().enumerate() {
                cluster.segment(&name, 1000 * round + content as u64);
            }
            let order = if round % 2 == 0 { [0, 1, 0, 1] } else { [1, 0, 1, 0] };
            let running = order.map(|content: usize| (content, repository.push(&clusters[content], &name).spawn()));
            let outcomes = running.map(|(content, child)| (content, finish(child)));
            let stored = zstd::decode_all(&repository.object(&segment_key(&name)).unwrap()[..]).unwrap();
            let content = |index: usize| std::fs::read(clusters[index].path().join("pg_wal").join(&name)).unwrap();
            let winner = (0..2).find(|index| content(*index) == stored).expect("one of the contents");
            for (content, outcome) in outcomes {
                assert_eq!(outcome.code, i32::from(content != winner), "round {round}: {outcome:?}");
            }
            winners.insert(winner);
        }
        assert_eq!(winners.len(), 2, "one content always won: the race was none");
    }
}

#[test]
fn two_clusters_that_both_push_first() {
    for round in 0..20 {
        for repository in Repository::both() {
            let name = "000000010000000000000001";
            let clusters = [FakeCluster::new(), FakeCluster::with(SYSTEM_ID + 1, 1)];
            let running = clusters.each_ref().map(|cluster| {
                cluster.segment(name, 1);
                repository.push(cluster, name).spawn()
            });
            let codes = running.map(|child| finish(child).code);
            assert!(codes == [0, 1] || codes == [1, 0], "round {round}: {codes:?}");
            assert_eq!(repository.keys().len(), 2, "{:?}", repository.keys());
        }
    }
}
