#ifndef SLUICE_RUNTIME_REPORT_REPORT_H_
#define SLUICE_RUNTIME_REPORT_REPORT_H_
// What a comparison found, once, and written four ways: for a terminal, as JSON, as CSV, and as one
// HTML file without anything from elsewhere. The same report gives the same bytes.
#include <cmath>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "sluice/api/version.h"
#include "sluice/runtime/base/whole_file.h"

SLUICE_BEGIN_NAMESPACE
struct ReportCell {
  std::string text;              // of a text column
  double value = NAN;            // not finite: nothing is known
  double low = NAN, high = NAN;  // interval, when there is one
};
struct ReportTable {
  struct Column {
    std::string name;
    int digits = 3;  // after the point; < 0: text
  };
  std::string title, note;
  std::vector<Column> columns;
  std::vector<std::vector<ReportCell>> rows;  // one cell a column
  std::vector<bool> marked;  // rows that stand out (on the Pareto front); empty: none
};
struct ReportChart {
  struct Point {
    double x = 0, y = 0, low = NAN, high = NAN;
    std::string label;
  };
  struct Series {
    std::string name;
    std::vector<Point> points;
    bool line = false;   // joined in their order; else dots
    bool quiet = false;  // a frame of reference: grey, without a place among the colours
  };
  std::string title, x, y;
  bool log_x = false;
  std::vector<Series> series;
};
struct ReportHeat {
  std::string title, note;
  std::vector<std::string> rows, columns;
  std::vector<std::vector<double>> values;  // [rows][columns]; not finite: blank
  double low = 0, high = 1;                 // of the colour scale
  bool picture = false;                     // a map of many cells: no numbers, small squares
};
struct Report {
  std::string title, notes;
  std::vector<ReportTable> tables;
  std::vector<ReportChart> charts;
  std::vector<ReportHeat> heats;
};

std::string ReportText(const Report&);  // tables, for a terminal; marked rows have a star
std::string ReportJson(const Report&);
std::string ReportCsv(const ReportTable&);
std::string ReportHtml(const Report&);

// PREFIX.html, PREFIX.json and, one a table, PREFIX.csv, PREFIX-2.csv, ... An existing file is
// replaced as a whole.
absl::Status WriteReport(const Report&, const std::string& prefix);
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_REPORT_REPORT_H_
