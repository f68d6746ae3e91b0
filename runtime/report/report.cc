#include "sluice/runtime/report/report.h"

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "sluice/api/check.h"

SLUICE_BEGIN_NAMESPACE
namespace {
std::string Escape(const std::string& s) {
  return absl::StrReplaceAll(s, {{"&", "&amp;"}, {"<", "&lt;"}, {">", "&gt;"}, {"\"", "&quot;"}});
}
std::string Number(double v, int digits) {
  if (!std::isfinite(v)) return "-";
  return absl::StrFormat("%.*f", digits, v);
}
bool HasInterval(const ReportCell& c) { return std::isfinite(c.low) && std::isfinite(c.high); }
std::string CellText(const ReportCell& c, const ReportTable::Column& column) {
  if (column.digits < 0) return c.text;
  std::string s = Number(c.value, column.digits);
  if (HasInterval(c))
    absl::StrAppend(&s, " [", Number(c.low, column.digits), ", ", Number(c.high, column.digits),
                    "]");
  return s;
}
bool Marked(const ReportTable& t, size_t row) { return row < t.marked.size() && t.marked[row]; }

// A scale of round numbers that covers [low, high].
struct Axis {
  double low = 0, high = 1;
  bool log = false;
  std::vector<double> ticks;
  double Of(double v) const {  // [0, 1]
    if (log) return (std::log10(v) - std::log10(low)) / (std::log10(high) - std::log10(low));
    return (v - low) / (high - low);
  }
};
Axis MakeAxis(double low, double high, bool log) {
  Axis a;
  if (log && low > 0) {
    a.log = true;
    a.low = std::pow(10.0, std::floor(std::log10(low) * 3 + 1e-9) / 3);
    a.high = std::pow(10.0, std::ceil(std::log10(high) * 3 - 1e-9) / 3);
    if (a.high <= a.low * 1.0001) a.high = a.low * 10;
    for (int power = static_cast<int>(std::floor(std::log10(a.low)));
         std::pow(10.0, power) <= a.high * 1.0001; ++power) {
      const double decade = std::pow(10.0, power);
      for (double m : {1.0, 2.0, 5.0}) {
        if (decade * m >= a.low * 0.9999 && decade * m <= a.high * 1.0001)
          a.ticks.push_back(decade * m);
      }
    }
    return a;
  }
  if (!(high > low)) {
    low -= std::max(1e-3, std::abs(low) * 0.05);
    high += std::max(1e-3, std::abs(high) * 0.05);
  }
  const double raw = (high - low) / 4, power = std::pow(10.0, std::floor(std::log10(raw)));
  const double step = power * (raw / power <= 1.0 ? 1
                               : raw / power <= 2 ? 2
                               : raw / power <= 5 ? 5
                                                  : 10);
  a.low = std::floor(low / step) * step;
  a.high = std::ceil(high / step) * step;
  for (int i = 0; a.low + i * step <= a.high + step / 2; ++i) {
    const double t = a.low + i * step;
    a.ticks.push_back(std::abs(t) < step * 1e-9 ? 0 : t);
  }
  return a;
}

constexpr double kWidth = 640, kHeight = 400, kLeft = 64, kRight = 16, kTop = 16, kBottom = 52;
constexpr int kColors = 8;

// After a round of colours the next ones are dashed, their dots hollow.
std::string ColorClass(const ReportChart::Series& s, int& color) {
  if (s.quiet) return "quiet";
  const int i = color++;
  return absl::StrCat("c", i % kColors, i >= kColors ? " again" : "");
}
std::string ChartSvg(const ReportChart& c) {
  double x_low = INFINITY, x_high = -INFINITY, y_low = INFINITY, y_high = -INFINITY;
  for (const auto& s : c.series) {
    for (const auto& p : s.points) {
      if (!std::isfinite(p.x) || !std::isfinite(p.y)) continue;
      x_low = std::min(x_low, p.x);
      x_high = std::max(x_high, p.x);
      for (double y : {p.y, p.low, p.high}) {
        if (std::isfinite(y)) {
          y_low = std::min(y_low, y);
          y_high = std::max(y_high, y);
        }
      }
    }
  }
  if (!std::isfinite(x_low)) return "<p class='note'>nothing to show</p>";
  const Axis ax = MakeAxis(x_low, x_high, c.log_x && x_low > 0),
             ay = MakeAxis(y_low, y_high, false);
  const auto px = [&](double v) { return kLeft + (kWidth - kLeft - kRight) * ax.Of(v); };
  const auto py = [&](double v) {
    return kHeight - kBottom - (kHeight - kBottom - kTop) * ay.Of(v);
  };
  std::string s = absl::StrFormat("<svg viewBox='0 0 %g %g' role='img' aria-label='%s'>", kWidth,
                                  kHeight, Escape(c.title));
  for (double t : ax.ticks)
    absl::StrAppendFormat(&s,
                          "<line x1='%.1f' x2='%.1f' y1='%g' y2='%.1f' class='grid'/><text "
                          "x='%.1f' y='%.1f' class='mid'>%g</text>",
                          px(t), px(t), kTop, kHeight - kBottom, px(t), kHeight - kBottom + 18, t);
  for (double t : ay.ticks)
    absl::StrAppendFormat(&s,
                          "<line x1='%g' x2='%g' y1='%.1f' y2='%.1f' class='grid'/><text x='%g' "
                          "y='%.1f' class='end'>%.4g</text>",
                          kLeft, kWidth - kRight, py(t), py(t), kLeft - 6, py(t) + 4, t);
  absl::StrAppendFormat(&s, "<text x='%.1f' y='%g' class='mid'>%s%s</text>",
                        (kLeft + kWidth - kRight) / 2, kHeight - 10, Escape(c.x),
                        ax.log ? " (log scale)" : "");
  absl::StrAppendFormat(&s,
                        "<text transform='translate(14 %.1f) rotate(-90)' class='mid'>%s</text>",
                        (kTop + kHeight - kBottom) / 2, Escape(c.y));
  int color = 0;
  for (const auto& series : c.series) {
    const std::string cls = ColorClass(series, color);
    std::string band, path, back;
    bool interval = true;
    for (const auto& p : series.points) {
      if (!std::isfinite(p.x) || !std::isfinite(p.y)) continue;
      absl::StrAppendFormat(&path, "%s%.1f,%.1f", path.empty() ? "" : " ", px(p.x), py(p.y));
      interval = interval && std::isfinite(p.low) && std::isfinite(p.high);
      if (interval) {
        absl::StrAppendFormat(&band, "%s%.1f,%.1f", band.empty() ? "" : " ", px(p.x), py(p.high));
        back = absl::StrFormat(" %.1f,%.1f", px(p.x), py(p.low)) + back;
      }
    }
    if (series.line && interval && !band.empty() && !series.quiet)
      absl::StrAppend(&s, "<polygon points='", band, back, "' class='band ", cls, "'/>");
    if (series.line) absl::StrAppend(&s, "<polyline points='", path, "' class='line ", cls, "'/>");
    if (series.line && series.points.size() > 12) continue;
    for (const auto& p : series.points) {
      if (!std::isfinite(p.x) || !std::isfinite(p.y)) continue;
      if (!series.line && std::isfinite(p.low) && std::isfinite(p.high))
        absl::StrAppendFormat(&s, "<line x1='%.1f' x2='%.1f' y1='%.1f' y2='%.1f' class='line %s'/>",
                              px(p.x), px(p.x), py(p.low), py(p.high), cls);
      absl::StrAppendFormat(
          &s,
          "<circle cx='%.1f' cy='%.1f' r='5' class='dot %s'><title>%s: %.4g, %.5g</title></circle>",
          px(p.x), py(p.y), cls, Escape(p.label.empty() ? series.name : p.label), p.x, p.y);
    }
  }
  s += "</svg><p class='legend'>";
  color = 0;
  for (const auto& series : c.series) {
    const std::string cls = ColorClass(series, color);
    const bool first =
        &series == &*std::find_if(c.series.begin(), c.series.end(),
                                  [&](const auto& o) { return o.name == series.name; });
    if (first) absl::StrAppend(&s, "<span class='key ", cls, "'>", Escape(series.name), "</span> ");
  }
  return s + "</p>";
}

// Cells as rectangles, no numbers.
std::string HeatSvg(const ReportHeat& h) {
  constexpr double kCell = 10;
  const double width = kCell * static_cast<double>(h.columns.size()),
               height = kCell * static_cast<double>(h.values.size());
  std::string s = absl::StrFormat("<svg viewBox='0 0 %g %g' role='img' aria-label='%s'>", width,
                                  height, Escape(h.title));
  for (size_t r = 0; r < h.values.size(); ++r) {
    for (size_t c = 0; c < h.values[r].size(); ++c) {
      const double v = h.values[r][c];
      if (!std::isfinite(v)) continue;
      absl::StrAppendFormat(
          &s, "<rect x='%g' y='%g' width='9' height='9' class='heat-cell' style='opacity:%.2f'/>",
          kCell * static_cast<double>(c), kCell * static_cast<double>(r),
          0.06 + 0.94 * std::clamp((v - h.low) / (h.high - h.low), 0.0, 1.0));
    }
  }
  return s + "</svg>";
}
std::string HeatHtml(const ReportHeat& h) {
  std::string s = absl::StrCat("<div class='wide'><table class='heat' aria-label='",
                               Escape(h.title), "'><tr><th></th>");
  for (const std::string& c : h.columns) absl::StrAppend(&s, "<th>", Escape(c), "</th>");
  s += "</tr>";
  for (size_t r = 0; r < h.rows.size(); ++r) {
    absl::StrAppend(&s, "<tr><th>", Escape(h.rows[r]), "</th>");
    for (size_t c = 0; c < h.columns.size(); ++c) {
      const double v = r < h.values.size() && c < h.values[r].size() ? h.values[r][c] : NAN;
      const double t = h.high > h.low ? std::clamp((v - h.low) / (h.high - h.low), 0.0, 1.0) : 0;
      if (std::isfinite(v))
        absl::StrAppendFormat(&s, "<td style='--t:%.0f%%'%s>%.2g</td>", 100 * t,
                              t > 0.55 ? " class='strong'" : "", v);
      else
        s += "<td></td>";
    }
    s += "</tr>";
  }
  return s + "</table></div>";
}

std::string TableHtml(const ReportTable& t) {
  std::string s = "<div class='wide'><table><tr>";
  for (const auto& c : t.columns)
    absl::StrAppend(&s, "<th", c.digits < 0 ? " class='name'" : "", ">", Escape(c.name), "</th>");
  s += "</tr>";
  for (size_t r = 0; r < t.rows.size(); ++r) {
    absl::StrAppend(&s, Marked(t, r) ? "<tr class='marked'>" : "<tr>");
    for (size_t c = 0; c < t.columns.size(); ++c) {
      const ReportCell& cell = t.rows[r][c];
      if (t.columns[c].digits < 0) {
        absl::StrAppend(&s, "<td class='name'>", Escape(cell.text), "</td>");
        continue;
      }
      absl::StrAppend(&s, "<td>", Number(cell.value, t.columns[c].digits));
      if (HasInterval(cell))
        absl::StrAppend(&s, " <small>[", Number(cell.low, t.columns[c].digits), ", ",
                        Number(cell.high, t.columns[c].digits), "]</small>");
      s += "</td>";
    }
    s += "</tr>";
  }
  return s + "</table></div>";
}

// Colours that stay apart for most kinds of colour blindness, on both grounds.
constexpr char kStyle[] =
    "\n"
    ":root{--ink:#1b1f24;--soft:#5b6470;--ground:#fff;--grid:#e3e6ea;--mark:#eef6ff;"
    "--heat:#0b62c4;\n"
    "--c0:#0b62c4;--c1:#c2410c;--c2:#0f766e;--c3:#9333ea;--c4:#a16207;--c5:#be185d;"
    "--c6:#4d7c0f;--c7:#0e7490}\n"
    "@media(prefers-color-scheme:dark){:root{--ink:#e8eaed;--soft:#9aa4b0;--ground:#14171b;"
    "--grid:#2b3138;--mark:#1c2a3a;--heat:#3d8bfd;\n"
    "--c0:#6ea8fe;--c1:#fb923c;--c2:#2dd4bf;--c3:#c084fc;--c4:#facc15;--c5:#f472b6;"
    "--c6:#a3e635;--c7:#22d3ee}}\n"
    "*{box-sizing:border-box}"
    "body{margin:0 auto;max-width:1360px;padding:24px 20px 48px;color:var(--ink);"
    "background:var(--ground);font:16px/1.5 system-ui,sans-serif}\n"
    "h1{font-size:26px;margin:0 0 4px}h1,h2,.note{overflow-wrap:anywhere}"
    "h2{font-size:18px;margin:0 0 8px}.note{color:var(--soft);margin:0 0 12px;max-width:80ch}\n"
    "section{margin:28px 0 0;min-width:0}"
    ".charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,520px),1fr));"
    "gap:28px;margin-top:28px}"
    ".charts section{margin:0}\n"
    "svg{display:block;width:100%;height:auto}svg text{fill:var(--soft);font-size:13px}"
    ".mid{text-anchor:middle}.end{text-anchor:end}\n"
    ".grid{stroke:var(--grid)}.line{stroke:var(--c);fill:none;stroke-width:2}"
    ".dot{fill:var(--c);stroke:var(--ground)}.band{fill:var(--c);opacity:.15}\n"
    ".legend{margin:4px 0 0;font-size:14px}"
    ".key{display:inline-block;max-width:100%;overflow-wrap:anywhere;margin-right:14px}"
    ".key::before{content:'';display:inline-block;width:10px;height:10px;border-radius:5px;"
    "background:var(--c);margin-right:6px}\n"
    ".c0{--c:var(--c0)}.c1{--c:var(--c1)}.c2{--c:var(--c2)}.c3{--c:var(--c3)}"
    ".c4{--c:var(--c4)}.c5{--c:var(--c5)}.c6{--c:var(--c6)}.c7{--c:var(--c7)}"
    ".quiet{--c:var(--soft)}\n"
    ".again.line{stroke-dasharray:5 4}"
    ".again.dot{fill:var(--ground);stroke:var(--c);stroke-width:2}"
    ".again.key::before{background:var(--ground);border:2px solid var(--c)}"
    ".wide{overflow-x:auto}"
    "table{border-collapse:collapse;font-size:14px;font-variant-numeric:tabular-nums}"
    "td,th{padding:5px 10px;border-bottom:1px solid var(--grid);text-align:right;"
    "white-space:nowrap}\n"
    ".name{text-align:left}"
    "td.name{font-family:ui-monospace,monospace;font-size:13px;white-space:normal;"
    "overflow-wrap:anywhere;min-width:150px;max-width:340px}"
    "th{color:var(--soft);font-weight:600}"
    "small{color:var(--soft);display:block;font-size:12px}.marked{background:var(--mark)}\n"
    ".maps{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,260px),1fr));"
    "gap:28px}"
    ".maps h2{font-size:15px;overflow-wrap:anywhere}.heat-cell{fill:var(--heat)}\n"
    ".heat th{text-align:center}@media(max-width:600px){svg text{font-size:19px}}\n"
    ".heat td{background:color-mix(in srgb,var(--heat) var(--t),transparent);"
    "text-align:center;min-width:44px}"
    ".heat td.strong{color:#fff}"
    ".heat th:first-child{text-align:left;font-family:ui-monospace,monospace;font-size:13px;"
    "white-space:normal;overflow-wrap:anywhere;min-width:110px;max-width:340px}\n";
}  // namespace

std::string ReportText(const Report& r) {
  std::string out = absl::StrCat(r.title, "\n", r.notes.empty() ? "" : absl::StrCat(r.notes, "\n"));
  for (const ReportTable& t : r.tables) {
    std::vector<size_t> width;
    for (size_t c = 0; c < t.columns.size(); ++c) {
      width.push_back(t.columns[c].name.size());
      for (const auto& row : t.rows)
        width[c] = std::max(width[c], CellText(row[c], t.columns[c]).size());
    }
    absl::StrAppend(&out, "\n", t.title, t.title.empty() ? "" : "\n");
    const auto put = [&](const std::string& text, size_t c) {
      if (t.columns[c].digits < 0)
        absl::StrAppendFormat(&out, "%-*s  ", static_cast<int>(width[c]), text);
      else
        absl::StrAppendFormat(&out, "%*s  ", static_cast<int>(width[c]), text);
    };
    out += "  ";
    for (size_t c = 0; c < t.columns.size(); ++c) put(t.columns[c].name, c);
    for (size_t i = 0; i < t.rows.size(); ++i) {
      while (!out.empty() && out.back() == ' ') out.pop_back();
      absl::StrAppend(&out, "\n", Marked(t, i) ? "* " : "  ");
      for (size_t c = 0; c < t.columns.size(); ++c) put(CellText(t.rows[i][c], t.columns[c]), c);
    }
    while (!out.empty() && out.back() == ' ') out.pop_back();
    absl::StrAppend(&out, "\n", t.note, t.note.empty() ? "" : "\n");
  }
  return out;
}

std::string ReportJson(const Report& r) {
  using nlohmann::ordered_json;
  const auto number = [](double v) { return std::isfinite(v) ? ordered_json(v) : ordered_json(); };
  ordered_json j;
  j["title"] = r.title;
  j["notes"] = r.notes;
  for (const ReportTable& t : r.tables) {
    ordered_json& out = j["tables"].emplace_back();
    out["title"] = t.title;
    for (size_t i = 0; i < t.rows.size(); ++i) {
      ordered_json row;
      for (size_t c = 0; c < t.columns.size(); ++c) {
        const ReportCell& cell = t.rows[i][c];
        if (t.columns[c].digits < 0) {
          row[t.columns[c].name] = cell.text;
          continue;
        }
        row[t.columns[c].name] = number(cell.value);
        if (HasInterval(cell))
          row[t.columns[c].name + " interval"] = {number(cell.low), number(cell.high)};
      }
      if (!t.marked.empty()) row["on the front"] = Marked(t, i);
      out["rows"].push_back(std::move(row));
    }
  }
  for (const ReportHeat& h : r.heats)
    j["heat maps"].push_back(
        {{"title", h.title}, {"rows", h.rows}, {"columns", h.columns}, {"values", h.values}});
  return j.dump(1, ' ', false, ordered_json::error_handler_t::replace) + "\n";
}

std::string ReportCsv(const ReportTable& t) {
  const auto quoted = [](const std::string& s) {
    return s.find_first_of(",\"\n") == std::string::npos
               ? s
               : absl::StrCat("\"", absl::StrReplaceAll(s, {{"\"", "\"\""}}), "\"");
  };
  const auto number = [](double v) {
    return std::isfinite(v) ? absl::StrFormat("%.9g", v) : std::string();
  };
  std::vector<bool> interval(t.columns.size());
  for (const auto& row : t.rows) {
    for (size_t c = 0; c < row.size(); ++c) interval[c] = interval[c] || HasInterval(row[c]);
  }
  std::string out;
  for (size_t c = 0; c < t.columns.size(); ++c) {
    absl::StrAppend(&out, c == 0 ? "" : ",", quoted(t.columns[c].name));
    if (interval[c])
      absl::StrAppend(&out, ",", quoted(t.columns[c].name + " low"), ",",
                      quoted(t.columns[c].name + " high"));
  }
  if (!t.marked.empty()) out += ",on the front";
  for (size_t i = 0; i < t.rows.size(); ++i) {
    out += "\n";
    for (size_t c = 0; c < t.columns.size(); ++c) {
      const ReportCell& cell = t.rows[i][c];
      absl::StrAppend(&out, c == 0 ? "" : ",",
                      t.columns[c].digits < 0 ? quoted(cell.text) : number(cell.value));
      if (interval[c]) absl::StrAppend(&out, ",", number(cell.low), ",", number(cell.high));
    }
    if (!t.marked.empty()) absl::StrAppend(&out, ",", Marked(t, i) ? 1 : 0);
  }
  return out + "\n";
}

std::string ReportHtml(const Report& r) {
  std::string h = absl::StrCat(
      "<!doctype html><html lang='en'><head><meta charset='utf-8'><meta name='viewport' "
      "content='width=device-width,initial-scale=1'><title>",
      Escape(r.title), "</title><style>", kStyle, "</style></head><body><h1>", Escape(r.title),
      "</h1><p class='note'>", Escape(r.notes), "</p>");
  if (!r.charts.empty()) {
    h += "<div class='charts'>";
    for (const ReportChart& c : r.charts)
      absl::StrAppend(&h, "<section><h2>", Escape(c.title), "</h2>", ChartSvg(c), "</section>");
    h += "</div>";
  }
  for (const ReportTable& t : r.tables)
    absl::StrAppend(&h, "<section><h2>", Escape(t.title), "</h2><p class='note'>", Escape(t.note),
                    "</p>", TableHtml(t), "</section>");
  bool maps = false;
  for (const ReportHeat& m : r.heats) {
    if (m.picture != maps) h += m.picture ? "<div class='maps'>" : "</div>";
    maps = m.picture;
    absl::StrAppend(&h, "<section><h2>", Escape(m.title), "</h2><p class='note'>", Escape(m.note),
                    "</p>", m.picture ? HeatSvg(m) : HeatHtml(m), "</section>");
  }
  if (maps) h += "</div>";
  return h + "</body></html>\n";
}

absl::Status WriteReport(const Report& r, const std::string& prefix) {
  absl::Status s = WriteWholeFile(prefix + ".html", ReportHtml(r));
  s.Update(WriteWholeFile(prefix + ".json", ReportJson(r)));
  for (size_t i = 0; i < r.tables.size(); ++i)
    s.Update(WriteWholeFile(i == 0 ? prefix + ".csv" : absl::StrCat(prefix, "-", i + 1, ".csv"),
                            ReportCsv(r.tables[i])));
  return s;
}
SLUICE_END_NAMESPACE
