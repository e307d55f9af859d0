//! Figures of the run, each beside the limit that it is to keep.

/// What was found, in the order in which it was judged.
#[derive(Default)]
pub struct Verdicts(Vec<String>);

impl Verdicts {
    pub fn at_least(&mut self, what: &str, figure: f64, limit: f64, unit: &str) {
        self.say(figure >= limit, what, figure, ">=", limit, unit);
    }

    pub fn at_most(&mut self, what: &str, figure: f64, limit: f64, unit: &str) {
        self.say(figure <= limit, what, figure, "<=", limit, unit);
    }

    fn say(&mut self, met: bool, what: &str, figure: f64, sign: &str, limit: f64, unit: &str) {
        let verdict = if met { "met" } else { "NOT met" };
        self.0.push(format!("{verdict:<9}{what:<76}{figure:>8.2} {unit:<12} {sign} {limit:.2}"));
    }

    /// Wall time on a machine that does other things, too, is no reason to fail: the lines say it.
    pub fn print(&self) {
        println!("\n{}", self.0.join("\n"));
    }
}
