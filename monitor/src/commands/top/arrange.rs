//! Which groups are shown, in which order: the tree or a list, sorted and filtered, with the limit
//! that is next to be hit.

use super::model::{Model, Place, ROOT};
use crate::cli::SortKey;

/// How far a group is from a limit: its own, or one above it, which its charges count against, too.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Distance {
    /// Bytes left to the nearest of these limits, and the group whose it is.
    pub room: Option<(u64, Place)>,
    /// Seconds until the first of them is hit, if each of these groups goes on growing as it does.
    pub left: Option<f64>,
    /// Bytes a second of the group itself.
    pub growth: Option<f64>,
}

/// A group that is shown.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Row {
    pub place: Place,
    pub depth: usize,
    /// Bit N: on level N another group follows below the same parent.
    pub follows: u64,
}

/// The order that the user has chosen.
#[derive(Clone, Copy, Debug)]
pub struct Arrangement {
    pub sort: SortKey,
    /// The other way round.
    pub is_inverted: bool,
    pub is_tree: bool,
}

/// The rows, in the order that is wanted.
#[derive(Debug, Default)]
pub struct Arranged {
    pub rows: Vec<Row>,
    /// Groups that match, those in collapsed ones included.
    pub matching: usize,
    /// All places, parents before children.
    order: Vec<Place>,
    /// Places that match or are above one that does; unless all are shown.
    is_shown: Vec<bool>,
    /// The distances of all places, where the order depends on them.
    distances: Vec<Distance>,
    /// The rank of each place by its path, as of an edition of the model: to compare paths costs most.
    ranks: Vec<u32>,
    /// The places by their ranks.
    by_rank: Vec<Place>,
    edition: Option<u64>,
    /// The children of each place, and all places for a list, as they were sorted last: most of them
    /// are still in order at the next tick.
    children: Vec<Vec<Place>>,
    list: Vec<Place>,
    /// Room for what is being sorted, and for rows whose children are to come.
    keyed: Vec<(u64, u32)>,
    waiting: Vec<Row>,
}

impl Arranged {
    /// Arranges the groups anew.
    pub fn renew(&mut self, model: &Model, by: Arrangement) {
        if self.edition.replace(model.edition) != Some(model.edition) {
            self.begin(model);
        }
        self.distances.clear();
        if matches!(by.sort, SortKey::Room | SortKey::Left) {
            self.measure(model);
        }
        let is_match = |place: &Place| model.node(*place).id.is_some() && model.node(*place).matches;
        self.matching = if model.filter().is_empty() {
            model.len()
        } else {
            self.order.iter().copied().filter(is_match).count()
        };
        self.rows.clear();
        if by.is_tree {
            self.mark_shown(model);
            self.tree(model, by);
        } else {
            let mut list = std::mem::take(&mut self.list);
            self.sort(model, by.sort, &mut list);
            let rows = |place: &Place| Row { place: *place, depth: 0, follows: 0 };
            let found = list.iter().filter(|place| is_match(place));
            if by.is_inverted {
                self.rows.extend(found.rev().map(rows));
            } else {
                self.rows.extend(found.map(rows));
            }
            self.list = list;
        }
    }

    /// A group's distance to the limits from it up.
    pub fn distance(&self, model: &Model, place: Place) -> Distance {
        if let Some(distance) = self.distances.get(place) {
            return *distance;
        }
        let above =
            if place == ROOT { Distance::default() } else { self.distance(model, model.node(place).parent) };
        Self::below(model, place, above)
    }

    /// The distance of a place below one with the distance `above`.
    fn below(model: &Model, place: Place, above: Distance) -> Distance {
        let node = model.node(place);
        let growth = node.growth.at(model.now);
        let room = node.limit.zip(node.usage).map(|(limit, usage)| limit.saturating_sub(usage));
        let left = room.zip(growth).filter(|(_, growth)| *growth > 0.0);
        let left = left.map(|(room, growth)| room as f64 / growth);
        let nearest = match (room, above.room) {
            (Some(own), above) if above.is_none_or(|(above, _)| own <= above) => Some((own, place)),
            (_, above) => above,
        };
        let left = match (left, above.left) {
            (Some(own), Some(above)) => Some(own.min(above)),
            (own, above) => own.or(above),
        };
        Distance { room: nearest, left, growth }
    }

    /// Finds the distances of all places.
    fn measure(&mut self, model: &Model) {
        self.distances.resize(model.places(), Distance::default());
        for &place in &self.order {
            let above =
                if place == ROOT { Distance::default() } else { self.distances[model.node(place).parent] };
            self.distances[place] = Self::below(model, place, above);
        }
    }

    /// Takes the places of a new edition of the model: parents before children, and by name.
    fn begin(&mut self, model: &Model) {
        self.order.clear();
        let mut waiting = vec![ROOT];
        while let Some(place) = waiting.pop() {
            self.order.push(place);
            waiting.extend(&model.node(place).children);
        }
        self.by_rank.clone_from(&self.order);
        self.by_rank.sort_unstable_by(|a, b| model.node(*a).path.cmp(&model.node(*b).path));
        self.ranks.clear();
        self.ranks.resize(model.places(), 0);
        for (rank, place) in (0..).zip(&self.by_rank) {
            self.ranks[*place] = rank;
        }
        self.list.clone_from(&self.order);
        self.children.clear();
        self.children.extend((0..model.places()).map(|place| model.node(place).children.clone()));
    }

    /// Marks what matches, and all above it.
    fn mark_shown(&mut self, model: &Model) {
        self.is_shown.clear();
        if model.filter().is_empty() {
            return;
        }
        self.is_shown.resize(model.places(), false);
        for &place in self.order.iter().rev() {
            let node = model.node(place);
            if (node.id.is_some() && node.matches) || self.is_shown[place] {
                self.is_shown[place] = true;
                self.is_shown[node.parent] = true;
            }
        }
    }

    fn tree(&mut self, model: &Model, by: Arrangement) {
        let top = Row { place: ROOT, depth: 0, follows: 0 };
        // The host's root is no group: those below it begin on the left.
        if model.node(ROOT).id.is_none() {
            self.push_children(model, by, top, 0);
        } else if self.is_shown.get(ROOT).copied().unwrap_or(true) {
            self.waiting.push(top);
        }
        while let Some(row) = self.waiting.pop() {
            self.rows.push(row);
            let node = model.node(row.place);
            // What is looked for is not hidden.
            if !node.children.is_empty() && (!node.is_collapsed || !model.filter().is_empty()) {
                self.push_children(model, by, row, row.depth + 1);
            }
        }
    }

    fn push_children(&mut self, model: &Model, by: Arrangement, above: Row, depth: usize) {
        let mut children = std::mem::take(&mut self.children[above.place]);
        self.sort(model, by.sort, &mut children);
        // The last row first, since the first is to be taken first.
        let mut is_last = true;
        let mut push = |place: Place| {
            if self.is_shown.get(place).copied().unwrap_or(true) {
                let bit = if is_last || depth >= 64 { 0 } else { 1 << depth };
                self.waiting.push(Row { place, depth, follows: above.follows | bit });
                is_last = false;
            }
        };
        if by.is_inverted {
            children.iter().for_each(|place| push(*place));
        } else {
            children.iter().rev().for_each(|place| push(*place));
        }
        self.children[above.place] = children;
    }

    /// Sorts groups, the first of equal ones by name.
    fn sort(&mut self, model: &Model, by: SortKey, places: &mut [Place]) {
        self.keyed.clear();
        let (ranks, distances) = (&self.ranks, &self.distances);
        let keys = places.iter().map(|place| (descending(key(model, distances, by, *place)), ranks[*place]));
        self.keyed.extend(keys);
        if self.keyed.is_sorted() {
            return;
        }
        // Stable, since that takes parts that are in order as they are.
        self.keyed.sort();
        for (place, (_, rank)) in places.iter_mut().zip(&self.keyed) {
            *place = self.by_rank[*rank as usize];
        }
    }
}

/// A number by which the greatest is first.
fn key(model: &Model, distances: &[Distance], by: SortKey, place: Place) -> f64 {
    let node = model.node(place);
    let distance = || distances.get(place);
    let value = match by {
        SortKey::Usage => node.usage.map(|bytes| bytes as f64),
        SortKey::Room => distance().and_then(|distance| distance.room).map(|(bytes, _)| -(bytes as f64)),
        SortKey::Growth => node.growth.at(model.now),
        SortKey::Left => distance().and_then(|distance| distance.left).map(|seconds| -seconds),
        SortKey::Pressure => node.pressure,
        SortKey::Registrations => Some(node.registrations as f64),
        SortKey::Event => node.event.map(|(time, _)| time),
        SortKey::Group => None,
    };
    value.unwrap_or(f64::NEG_INFINITY)
}

/// A number that is the smaller, the greater the other is (`f64::total_cmp`).
const fn descending(value: f64) -> u64 {
    let bits = value.to_bits();
    if bits >> 63 == 0 { !(bits | 1 << 63) } else { bits }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Arranged, Arrangement, SortKey, descending};
    use crate::commands::top::model::Model;

    const MIB: u64 = 1 << 20;
    const TREE: Arrangement = Arrangement { sort: SortKey::Usage, is_inverted: false, is_tree: true };
    const LIST: Arrangement = Arrangement { is_tree: false, ..TREE };

    /// `/a` with `/a/x` and `/a/y`, and `/b`.
    fn model() -> Model {
        let mut model = Model::new("/cg");
        for (id, path) in [(1, "/cg/a"), (2, "/cg/a/x"), (3, "/cg/a/y"), (4, "/cg/b")] {
            model.add(id, path);
        }
        for (now, grown) in [(0.0, 0), (10.0, 1)] {
            model.begin(now);
            let usage = [(1, 40 + 20 * grown), (2, 10), (3, 30 + 20 * grown), (4, 90)];
            usage.iter().for_each(|(id, mib)| model.set_usage(*id, mib * MIB, 0.0));
        }
        model
    }

    fn shown(model: &Model, by: Arrangement) -> Vec<String> {
        let mut arranged = Arranged::default();
        arranged.renew(model, by);
        let name = |row: &super::Row| format!("{}{}", " ".repeat(row.depth), model.node(row.place).path);
        arranged.rows.iter().map(name).collect()
    }

    #[test]
    fn the_tree_is_sorted_below_each_parent_and_the_list_throughout() {
        let model = model();
        assert_eq!(shown(&model, TREE), ["/b", "/a", " /a/y", " /a/x"]);
        assert_eq!(shown(&model, LIST), ["/b", "/a", "/a/y", "/a/x"]);
        let inverted = Arrangement { is_inverted: true, ..LIST };
        assert_eq!(shown(&model, inverted), ["/a/x", "/a/y", "/a", "/b"]);
        let by_growth = Arrangement { sort: SortKey::Growth, ..LIST };
        assert_eq!(shown(&model, by_growth), ["/a", "/a/y", "/a/x", "/b"]);
        assert_eq!(shown(&model, Arrangement { sort: SortKey::Group, ..LIST })[0], "/a");
    }

    #[test]
    fn collapsed_groups_hide_what_is_below_but_not_from_a_filter() {
        let mut model = model();
        let a = model.place_of(1).expect("there");
        model.node_mut(a).is_collapsed = true;
        assert_eq!(shown(&model, TREE), ["/b", "/a"]);
        model.set_filter("/X");
        assert_eq!(shown(&model, TREE), ["/a", " /a/x"]);
        assert_eq!(shown(&model, LIST), ["/a/x"]);
    }

    #[test]
    fn the_root_is_shown_above_a_match_alone() {
        let mut model = model();
        // As in a cgroup namespace, where the root is a group.
        model.add(5, "/cg");
        assert_eq!(shown(&model, TREE), ["/", " /b", " /a", "  /a/y", "  /a/x"]);
        model.set_filter("/x");
        assert_eq!(shown(&model, TREE), ["/", " /a", "  /a/x"]);
        model.set_filter("nothing");
        assert_eq!([shown(&model, TREE), shown(&model, LIST)], [[""; 0]; 2]);
    }

    #[test]
    fn the_nearest_limit_and_the_first_to_be_hit_may_be_above() {
        let mut model = model();
        // 60 MiB are used and grow by 2 MiB a second.
        model.set_limit(1, Some(70 * MIB));
        model.set_limit(2, Some(100 * MIB));
        let mut arranged = Arranged::default();
        arranged.renew(&model, TREE);
        let [a, x, y, b] = [1, 2, 3, 4].map(|id| model.place_of(id).expect("there"));
        for place in [a, x, y] {
            assert_eq!(arranged.distance(&model, place).room, Some((10 * MIB, a)));
            let left = arranged.distance(&model, place).left.expect("it grows");
            assert!((left - 5.0).abs() < 0.01, "{left}");
        }
        assert_eq!((arranged.distance(&model, b).room, arranged.distance(&model, b).left), (None, None));
        model.set_limit(2, Some(11 * MIB));
        arranged.renew(&model, TREE);
        assert_eq!(arranged.distance(&model, x).room, Some((MIB, x)));
        // It does not grow itself.
        assert!((arranged.distance(&model, x).left.expect("of the one above") - 5.0).abs() < 0.01);
    }

    proptest! {
        #[test]
        fn keys_are_in_the_order_of_their_numbers(a in any::<f64>(), b in any::<f64>()) {
            prop_assert_eq!(descending(a).cmp(&descending(b)), b.total_cmp(&a));
        }

        #[test]
        fn what_was_arranged_before_makes_no_difference(
            usage in prop::collection::vec((1..5u64, 0..8u64), 1..20), sort in 0..8usize, is_tree: bool,
        ) {
            let (mut model, by) = (model(), Arrangement { sort: SortKey::ALL[sort], is_tree, ..LIST });
            let mut arranged = Arranged::default();
            for (at, (id, mib)) in usage.into_iter().enumerate() {
                model.begin(20.0 + at as f64);
                model.set_usage(id, mib * MIB, model.now - 1.0);
                arranged.renew(&model, by);
                let mut anew = Arranged::default();
                anew.renew(&model, by);
                prop_assert_eq!(&arranged.rows, &anew.rows);
            }
        }
    }
}
