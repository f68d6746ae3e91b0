#include "sluice/examples/engine/report.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <functional>
#include <map>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"

namespace engine {
namespace {
std::string Escape(const std::string& s) {
  return absl::StrReplaceAll(s, {{"&", "&amp;"}, {"<", "&lt;"}, {">", "&gt;"}, {"\"", "&quot;"}});
}
constexpr const char* kColors[] = {"#111111", "#d62728", "#1f77b4", "#2ca02c", "#9467bd",
                                   "#ff7f0e", "#17becf", "#8c564b", "#e377c2"};

std::string Chart(const std::string& title, const std::vector<ReportRow>& rows,
                  const std::function<double(const ReportRow&)>& y, double lo, double hi) {
  constexpr double W = 420, H = 280, L = 56, B = 40, T = 28, R = 12;
  const auto px = [&](double density) {
    return L + (W - L - R) * std::clamp(std::log10(std::max(density, 0.01)) / 2 + 1, 0.0, 1.0);
  };
  const auto py = [&](double v) { return H - B - (H - B - T) * std::clamp((v - lo) / (hi - lo), 0.0, 1.0); };
  std::string s = absl::StrFormat(
      "<svg width='%g' height='%g' viewBox='0 0 %g %g' role='img' aria-label='%s'><text x='%g' y='16' "
      "class='t'>%s</text>",
      W, H, W, H, title, L, title);
  for (double x : {0.01, 0.03, 0.1, 0.3, 1.0})
    absl::StrAppendFormat(&s,
                          "<line x1='%g' x2='%g' y1='%g' y2='%g' class='g'/><text x='%g' y='%g' class='m'>%g</text>",
                          px(x), px(x), T, H - B, px(x), H - B + 14, x);
  for (int i = 0; i <= 4; ++i) {
    const double v = lo + (hi - lo) * i / 4;
    absl::StrAppendFormat(&s,
                          "<line x1='%g' x2='%g' y1='%g' y2='%g' class='g'/><text x='%g' y='%g' class='e'>%.3g</text>",
                          L, W - R, py(v), py(v), L - 4, py(v) + 4, v);
  }
  absl::StrAppendFormat(&s, "<text x='%g' y='%g' class='m'>density (measured, log scale)</text>", (L + W - R) / 2,
                        H - 6);
  std::map<std::string, std::vector<const ReportRow*>> by;
  std::vector<std::string> order;
  for (const ReportRow& r : rows) {
    if (by[r.router].empty()) order.push_back(r.router);
    by[r.router].push_back(&r);
  }
  for (size_t c = 0; c < order.size(); ++c) {
    auto& points = by[order[c]];
    std::sort(points.begin(), points.end(),
              [](const ReportRow* a, const ReportRow* b) { return a->density < b->density; });
    std::string path;
    for (const ReportRow* r : points)
      absl::StrAppendFormat(&path, "%s%g,%g", path.empty() ? "" : " ", px(r->density), py(y(*r)));
    absl::StrAppendFormat(&s, "<polyline points='%s' fill='none' stroke='%s'/>", path, kColors[c % 9]);
    for (const ReportRow* r : points)
      absl::StrAppendFormat(&s,
                            "<circle cx='%g' cy='%g' r='4' fill='%s'><title>%s: density %.3f, %.4g</title></circle>",
                            px(r->density), py(y(*r)), kColors[c % 9], Escape(r->spec), r->density, y(*r));
  }
  return s + "</svg>";
}
}  // namespace

absl::Status WriteReport(const std::string& path, const std::string& title, const std::string& notes,
                         const std::vector<ReportRow>& rows) {
  if (rows.empty()) return absl::InvalidArgumentError("a report needs at least one row");
  std::string h = absl::StrCat(
      "<!doctype html><html lang='en'><meta charset='utf-8'><title>", Escape(title),
      "</title><style>body{font:14px sans-serif;max-width:1000px;margin:2em "
      "auto}table{border-collapse:collapse}td,th{padding:3px 9px;border-bottom:1px solid #ddd;text-align:right}"
      "td:first-child,th:first-child{text-align:left;font-family:monospace}svg{margin:8px}.t{font-weight:bold}.g{"
      "stroke:#e5e5e5}.m{text-anchor:middle;font-size:11px}.e{text-anchor:end;font-size:11px}</style><h1>",
      Escape(title), "</h1><p>", Escape(notes), "</p>");
  double worst = rows[0].perplexity;
  for (const ReportRow& r : rows) worst = std::max(worst, r.perplexity);
  h += Chart(
      "Fact accuracy", rows, [](const ReportRow& r) { return r.accuracy; }, 0, 1);
  h += Chart(
      "Mass recall", rows, [](const ReportRow& r) { return r.mass_recall; }, 0, 1);
  h += Chart(
      "Perplexity", rows, [](const ReportRow& r) { return r.perplexity; }, rows[0].perplexity * 0.95, worst * 1.02);
  h += Chart(
      "Attention speed against dense (planning included)", rows,
      [&](const ReportRow& r) { return (rows[0].plan_s + rows[0].attend_s) / (r.plan_s + r.attend_s); }, 0, 8);
  h += "<p>";
  std::vector<std::string> seen;
  for (const ReportRow& r : rows) {
    if (std::find(seen.begin(), seen.end(), r.router) != seen.end()) continue;
    absl::StrAppend(&h, "<span style='color:", kColors[seen.size() % 9], "'>&#9679; ", Escape(r.router),
                    "</span> &nbsp; ");
    seen.push_back(r.router);
  }
  h += "</p><table><tr><th>router</th><th>prefill s</th><th>of it planning</th><th>attention</th><th>decode "
       "ms/token</th><th>density</th><th>mass recall</th><th>perplexity</th><th>fact accuracy</th><th>speed</th></tr>";
  for (const ReportRow& r : rows) {
    absl::StrAppendFormat(&h,
                          "<tr><td>%s</td><td>%.2f</td><td>%.2f</td><td>%.2f</td><td>%.2f</td><td>%.3f</td><td>%.3f</"
                          "td><td>%.2f</td><td>%.3f</td><td>%.2fx</td></tr>",
                          Escape(r.spec), r.prefill_s, r.plan_s, r.attend_s, r.decode_ms, r.density, r.mass_recall,
                          r.perplexity, r.accuracy, rows[0].prefill_s / r.prefill_s);
  }
  h += "</table></html>\n";
  std::ofstream f(path);
  f << h;
  f.close();
  if (!f) return absl::InternalError(absl::StrCat("cannot write ", path));
  return absl::OkStatus();
}
}  // namespace engine
