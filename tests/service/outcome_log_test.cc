// Tables of outcomes: what is not told stays unknown, and what is wrong is refused by its place.
#include "sluice/runtime/service/outcome_log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "sluice/runtime/service/replay.h"

SLUICE_BEGIN_NAMESPACE
namespace outcome_log_test {
using testing::HasSubstr;

OutcomeLog Parse(const std::string& csv) {
  auto log = ParseOutcomeLog(csv);
  EXPECT_TRUE(log.ok()) << log.status();
  return *std::move(log);
}
std::string Error(const std::string& csv) {
  return std::string(ParseOutcomeLog(csv).status().message());
}

// `good` answers 0.9 wherever it was asked, `cheap` 0.6 everywhere.
std::string Sparse(int rows) {
  std::string csv = "id,task,quality:good,cost_usd:good,quality:cheap,cost_usd:cheap\n";
  for (int i = 0; i < rows; ++i)
    absl::StrAppend(&csv, "q", i, ",math,", i % 2 == 0 ? ",," : "0.9,0.002,", "0.6,0.0001\n");
  return csv;
}

TEST(OutcomeLog, MissingIsNotZero) {
  const OutcomeLog log = Parse(Sparse(40));
  EXPECT_EQ(log.missing(), 20);
  EXPECT_TRUE(std::isnan(log.rows[0].quality[0]));
  EXPECT_TRUE(std::isnan(log.rows[0].cost_usd[0]));
  const auto graph = log.Graph(1);
  EXPECT_NEAR(graph->agent(0).cost_usd, 0.002, 1e-12);
  EXPECT_NEAR(graph->agent(1).cost_usd, 0.0001, 1e-12);

  const auto complete = log.Complete({.cost = true});
  ASSERT_TRUE(complete.ok()) << complete.status();
  EXPECT_EQ(complete->rows.size(), 20u);
  const Ceilings c = CeilingsOf(*complete, 0, 0);
  EXPECT_DOUBLE_EQ(c.best_single, 0.9);

  ReplayOptions o;
  o.decisions = 100;
  EXPECT_THAT(std::string(Replay(log, "random", o, 1).status().message()),
              HasSubstr("20 of 40 rows do not tell every agent's answer"));
  const auto best = Replay(*complete, "best_single", o, 1);
  ASSERT_TRUE(best.ok()) << best.status();
  EXPECT_NEAR(best->quality, 0.9, 0.02);
}

TEST(OutcomeLog, WhatIsNeededMustBeTold) {
  const OutcomeLog log =
      Parse("task,quality:a,cost_usd:a,latency_s:a,quality:b\nt,1,,0,1\nt,1,2,3,1\nt,,,,1\n");
  EXPECT_EQ(log.Complete({})->rows.size(), 2u);
  // b never tells its cost.
  EXPECT_THAT(std::string(log.Complete({.cost = true}).status().message()),
              HasSubstr("none of 3 rows tells every agent's quality and cost"));
  EXPECT_DOUBLE_EQ(log.Graph(1)->agent(0).latency_s, 3) << "0 is not told";
  EXPECT_DOUBLE_EQ(log.Graph(1)->agent(1).latency_s, 0);
}

TEST(OutcomeLog, WrongCellsAreRefusedByTheirPlace) {
  const std::string head = "id,task,intent:t,feature:0,quality:a,cost_usd:a\n";
  EXPECT_EQ(Parse(head + "x,t,1,2,1,0\n").rows.size(), 1u);
  EXPECT_EQ(Error(head + "x,t,1,2,1,0\nx,t,1,2,90,0\n"),
            "line 3: column 'quality:a' is '90'; wanted 0 to 1");
  for (const char* quality : {"-0.1", "1.0001"})
    EXPECT_THAT(Error(head + "x,t,1,2," + quality + ",0\n"), HasSubstr("wanted 0 to 1")) << quality;
  for (const char* number : {"nan", "inf", "-inf", "1e999", "x", "0x", "1 2"}) {
    EXPECT_THAT(Error(head + "x,t,1,2," + number + ",0\n"), HasSubstr("line 2: column 'quality:a'"))
        << number;
    EXPECT_THAT(Error(head + "x,t,1," + number + ",1,0\n"), HasSubstr("line 2: column 'feature:0'"))
        << number;
  }
  EXPECT_THAT(Error(head + "x,t,1,2,1,-1\n"), HasSubstr("'cost_usd:a' is '-1'; wanted at least 0"));
  EXPECT_THAT(Error(head + "x,,1,2,1,1\n"), HasSubstr("'task' is ''; wanted a name"));
  EXPECT_THAT(Error(head + "x,t,,2,1,1\n"), HasSubstr("'intent:t' is ''"));
  EXPECT_THAT(Error(head + "x,t,0,2,1,1\n"), HasSubstr("intents that are all zero"));
  EXPECT_THAT(Error(head + "x,t,1,,1,1\n"), HasSubstr("'feature:0' is ''"));
  EXPECT_THAT(Error(head + "x,t,1,2,1\n"), HasSubstr("line 2: 5 cells, the header has 6 columns"));
  EXPECT_THAT(Error(head + "\"x,t,1,2,1,1\n"), HasSubstr("line 2"));
}

TEST(OutcomeLog, WrongHeadersAreRefusedByTheirColumn) {
  EXPECT_THAT(Error("task,quality:a,quality:a\n"), HasSubstr("'quality:a' is given twice"));
  EXPECT_THAT(Error("task,task,quality:a\n"), HasSubstr("'task' is given twice"));
  EXPECT_THAT(Error("task,quality:a,cost_usd:b\n"),
              HasSubstr("'cost_usd:b' of an agent without a column quality:b"));
  EXPECT_THAT(Error("task,latency_s:b,quality:a\n"),
              HasSubstr("'latency_s:b' of an agent without a column quality:b"));
  for (const char* column : {"quality:", "quality", "price:a", "", "Task"})
    EXPECT_THAT(Error(absl::StrCat("task,quality:a,", column, "\n")),
                HasSubstr("; known: id, task"))
        << column;
  EXPECT_THAT(Error("task,id\nt,1\n"), HasSubstr("no column quality:AGENT"));
  EXPECT_THAT(Error(""), HasSubstr("no header"));
  EXPECT_THAT(Error("task,quality:a\n"), HasSubstr("no rows"));
}

TEST(OutcomeLog, TablesAsSpreadsheetsWriteThem) {
  const OutcomeLog log =
      Parse("\xEF\xBB\xBFid,task,\"quality:a, b\"\r\n\"q,\"\"1\"\"\",t,0.5\r\n\r\nq2,t,1\r\n");
  EXPECT_EQ(log.agents, std::vector<std::string>{"a, b"});
  ASSERT_EQ(log.rows.size(), 2u);
  EXPECT_EQ(log.rows[0].id, "q,\"1\"");
  EXPECT_EQ(log.rows[1].quality[0], 1);
}

TEST(OutcomeLog, RowsWithoutANameDoNotShareOne) {
  const OutcomeLog log = Parse("task,quality:a\nt,1\nt,0\n");
  EXPECT_NE(log.rows[0].id, log.rows[1].id);
}
TEST(OutcomeLog, NeedsATaskColumn) {
  EXPECT_THAT(ParseOutcomeLog("quality:a\n1\n").status().message(), HasSubstr("no column task"));
  EXPECT_THAT(ParseOutcomeLog("id,intent:x,quality:a\nq,1,1\n").status().message(),
              HasSubstr("no column task"));
}
}  // namespace outcome_log_test
SLUICE_END_NAMESPACE
