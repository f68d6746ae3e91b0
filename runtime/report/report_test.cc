#include "sluice/runtime/report/report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

SLUICE_BEGIN_NAMESPACE
namespace report_test {
using testing::HasSubstr;

Report Sample() {
  Report r;
  r.title = "A <title>";
  r.notes = "two \"notes\"";
  r.tables.push_back({"Cells", "", {{"policy", -1}, {"quality", 2}}, {}, {true, false}});
  r.tables[0].rows = {{{"a,b"}, {"", 0.5, 0.4, 0.6}}, {{"x"}, {"", NAN}}};
  r.charts.push_back({"Chart",
                      "density",
                      "quality",
                      true,
                      {{"one", {{0.1, 1, 0.9, 1.1, "p"}, {1, 2, NAN, NAN, ""}}, true}}});
  r.heats.push_back({"Heat", "", {"row"}, {"c1", "c2"}, {{0.25, NAN}}, 0, 1});
  return r;
}

TEST(Report, FourForms) {
  const Report r = Sample();
  EXPECT_EQ(ReportText(r),
            "A <title>\ntwo \"notes\"\n\nCells\n  policy            quality\n* a,b     0.50 [0.40, "
            "0.60]\n  x          "
            "             -\n");
  EXPECT_EQ(
      ReportCsv(r.tables[0]),
      "policy,quality,quality low,quality high,on the front\n\"a,b\",0.5,0.4,0.6,1\nx,,,,0\n");
  const auto j = nlohmann::json::parse(ReportJson(r));
  EXPECT_EQ(j["tables"][0]["rows"][0]["quality interval"][1], 0.6);
  EXPECT_TRUE(j["tables"][0]["rows"][1]["quality"].is_null());
  EXPECT_TRUE(j["heat maps"][0]["values"][0][1].is_null());
  const std::string html = ReportHtml(r);
  EXPECT_THAT(html, HasSubstr("A &lt;title&gt;"));
  EXPECT_THAT(html, HasSubstr("<svg viewBox"));
  EXPECT_THAT(html, HasSubstr("tr class='marked'"));
  EXPECT_THAT(html, Not(HasSubstr("nan")));
  EXPECT_EQ(html, ReportHtml(Sample()));
}

TEST(Report, OddNumbersMakeNoOddPictures) {
  Report r = Sample();
  r.charts[0].series[0].points = {{NAN, 1, NAN, NAN, ""}, {1, INFINITY, NAN, NAN, ""}};
  EXPECT_THAT(ReportHtml(r), HasSubstr("nothing to show"));
  r.charts[0].series[0].points = {{0, 1, NAN, NAN, ""}};  // one point, at 0 of a log axis
  const std::string html = ReportHtml(r);
  EXPECT_THAT(html, Not(HasSubstr("nan")));
  EXPECT_THAT(html, Not(HasSubstr("inf")));
  r.charts[0].series.clear();
  EXPECT_THAT(ReportHtml(r), HasSubstr("nothing to show"));
}

TEST(Report, WritesWholeFilesOrSaysWhy) {
  EXPECT_THAT(WriteReport(Sample(), "/nonexistent/x").message(),
              HasSubstr("cannot write /nonexistent/x.html"));
}
}  // namespace report_test
SLUICE_END_NAMESPACE
