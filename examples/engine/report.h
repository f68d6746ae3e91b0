#ifndef SLUICE_EXAMPLES_ENGINE_REPORT_H_
#define SLUICE_EXAMPLES_ENGINE_REPORT_H_
#include <string>
#include <vector>

#include "absl/status/status.h"

namespace engine {
struct ReportRow {
  std::string router, spec;
  double prefill_s = 0, plan_s = 0, attend_s = 0, decode_ms = 0, density = 0, mass_recall = 0, perplexity = 0,
         accuracy = 0;
};
// One self-contained HTML file: the table and, as SVG, quality over density with one line a router.
absl::Status WriteReport(const std::string& path, const std::string& title, const std::string& notes,
                         const std::vector<ReportRow>& rows);
}  // namespace engine
#endif  // SLUICE_EXAMPLES_ENGINE_REPORT_H_
