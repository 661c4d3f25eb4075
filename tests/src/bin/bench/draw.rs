//! Charts of the figures.

use anyhow::Result;
use plotters::prelude::*;
use plotters::style::full_palette::{BLUE_600, DEEPORANGE_600, GREY_600};

/// Bars with names, by the first word of which they are coloured: grey what others
/// are measured by ("bare"), and the rivals in another colour.
pub(crate) struct Chart {
    /// The file, in `docs`.
    pub(crate) file: &'static str,
    /// What is drawn.
    pub(crate) title: String,
    /// Names and figures, from above.
    pub(crate) bars: Vec<(String, f64)>,
}

impl Chart {
    /// As an SVG.
    pub(crate) fn svg(&self) -> Result<String> {
        const WIDTH: u32 = 900;
        const LEFT: i32 = 330;
        const STEP: i32 = 26;
        let mut svg = String::new();
        let height = 60 + STEP * self.bars.len() as i32;
        let most = self
            .bars
            .iter()
            .map(|bar| bar.1)
            .fold(f64::MIN_POSITIVE, f64::max);
        {
            let area =
                SVGBackend::with_string(&mut svg, (WIDTH, height as u32)).into_drawing_area();
            area.fill(&WHITE)?;
            let text = |size: i32| ("sans-serif", size).into_font().color(&BLACK);
            area.draw(&Text::new(self.title.as_str(), (12, 14), text(18)))?;
            for (place, (name, figure)) in (0..).zip(&self.bars) {
                let top = 46 + STEP * place;
                let long = f64::from(WIDTH as i32 - LEFT - 90) * figure / most;
                let corners = [(LEFT, top), (LEFT + (long as i32).max(1), top + STEP - 8)];
                let colour = match name.split([' ', ',']).next() {
                    Some("bare") => GREY_600,
                    Some("nftables" | "HAProxy") => DEEPORANGE_600,
                    _ => BLUE_600,
                };
                area.draw(&Rectangle::new(corners, colour.filled()))?;
                area.draw(&Text::new(name.as_str(), (12, top + 2), text(14)))?;
                let at = (LEFT + long as i32 + 8, top + 2);
                area.draw(&Text::new(crate::page::shown(*figure), at, text(14)))?;
            }
            area.present()?;
        }
        Ok(svg + "\n")
    }
}
