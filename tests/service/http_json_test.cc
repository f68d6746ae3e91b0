// JSON <-> sluice.v1, heads of requests, and the Prometheus page: what the HTTP side reads and
// writes without a server.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "sluice/runtime/service/http_connections.h"
#include "sluice/runtime/service/http_json.h"
#include "sluice/runtime/service/metrics.h"

SLUICE_BEGIN_NAMESPACE
namespace http_json_test {
using testing::HasSubstr;
using testing::Not;

std::string RouteError(const std::string& body) {
  v1::RouteRequest q;
  bool single = false;
  return std::string(ReadRoute(body, &q, &single).message());
}
std::string ChatError(const std::string& body) {
  return std::string(ReadChat(body).status().message());
}

TEST(HttpJson, ARequestOrOneOfItsMany) {
  v1::RouteRequest q;
  bool single = false;
  ASSERT_TRUE(ReadRoute(R"({"task": "math", "features": [1, -2.5], 
      "exclude": ["a"], "tag": null, "maxCostUsd": 0.25, "previous": "AQI="})",
                        &q, &single)
                  .ok());
  EXPECT_TRUE(single);
  ASSERT_EQ(q.queries_size(), 1);
  EXPECT_EQ(q.queries(0).task(), "math");
  EXPECT_EQ(q.queries(0).features(1), -2.5f);
  EXPECT_EQ(q.queries(0).max_cost_usd(), 0.25);
  EXPECT_EQ(q.queries(0).previous(), "\x01\x02");

  v1::RouteRequest many;
  ASSERT_TRUE(ReadRoute(R"({"queries": [{}, {"unit": "u"}]})", &many, &single).ok());
  EXPECT_FALSE(single);
  EXPECT_EQ(many.queries(1).unit(), "u");

  v1::FeedbackRequest f;
  ASSERT_TRUE(ReadFeedback(R"({"receipt": "_-8", "quality": 0, "accepted": false,
      "agents": [{"agent": "a", "failed": true, "cost_usd": 0.5}]})",
                           &f, &single)
                  .ok());
  EXPECT_EQ(f.outcomes(0).receipt(), "\xff\xef") << "URL-safe base64 too";
  EXPECT_TRUE(f.outcomes(0).has_quality());
  EXPECT_TRUE(f.outcomes(0).has_accepted());
  EXPECT_EQ(f.outcomes(0).agents(0).cost_usd(), 0.5);
  v1::FeedbackRequest ungraded;
  ASSERT_TRUE(ReadFeedback(R"({"receipt": "AQI=", "quality": null})", &ungraded, &single).ok());
  EXPECT_FALSE(ungraded.outcomes(0).has_quality());

  v1::ExplainRequest e;
  ASSERT_TRUE(ReadExplain(R"({"decision_id": "18446744073709551615"})", &e).ok());
  EXPECT_EQ(e.decision_id(), std::numeric_limits<uint64_t>::max());
  ASSERT_TRUE(ReadExplain(R"({"decision_id": 12e2})", &e).ok());
  EXPECT_EQ(e.decision_id(), 1200u);
}

TEST(HttpJson, WhatIsWrongIsRefusedByItsPath) {
  const std::pair<const char*, const char*> kBad[] = {
      {"", "no JSON"},
      {"[]", "the body: array; allowed: a JSON object"},
      {"{\"task\": \"a\"", "no JSON"},
      {"{\"task\": \"a\"} {}", "no JSON"},
      {"{\"task\": NaN}", "no JSON"},
      {"{\"max_cost_usd\": Infinity}", "no JSON"},
      {"{\"max_cost_usd\": \"NaN\"}", "max_cost_usd: string; allowed: number"},
      {"{\"max_cost_usd\": 1e999}", "no JSON"},
      {"{\"features\": [1, 1e39]}", "features[1]: 1e+39; allowed: a number from"},
      {"{\"task\": \"\xff\"}", "no JSON"},
      {"{\"task\": \"\xed\xa0\x80\"}", "no JSON"},
      {"{\"task\": 1}", "task: number; allowed: string"},
      {"{\"queries\": {}}", "queries: object; allowed: array"},
      {"{\"queries\": [{\"task\": []}]}", "queries[0].task: array; allowed: string"},
      {"{\"queries\": [{}, 7]}", "queries[1]: number; allowed: object"},
      {"{\"queries\": [], \"tsak\": 1}", "'tsak': no such field; allowed: queries"},
      {"{\"queries\": [{\"tsak\": 1}]}", "queries[0].'tsak': no such field; allowed: task, intent"},
      {"{\"previous\": \"%%%\"}", "previous: '%%%'; allowed: base64"},
      {"{\"previous\": 3}", "previous: number; allowed: base64 as a string"},
      {"{\"max_cost_usd\": 1, \"maxCostUsd\": 2}", "max_cost_usd: given twice"},
      {"{\"exclude\": \"a\"}", "exclude: string; allowed: array"},
      {"{\"exclude\": [null]}", "exclude[0]: null; allowed: string"},
  };
  for (const auto& [body, why] : kBad) EXPECT_THAT(RouteError(body), HasSubstr(why)) << body;
  const std::string deep(100000, '[');
  EXPECT_THAT(RouteError("{\"features\": " + deep), HasSubstr("nested too deeply"));

  v1::ExplainRequest e;
  for (const char* id : {"-1", "1.5", "18446744073709551616", "\"\"", "\"0x1\"", "\" 1\"", "\"+1\"",
                         "\"-1\"", "true", "1e300"})
    EXPECT_THAT(std::string(ReadExplain(absl::StrCat("{\"decision_id\": ", id, "}"), &e).message()),
                HasSubstr("decision_id: "))
        << id;
}

TEST(HttpJson, AnswersSayAllAndKeepBigNumbers) {
  v1::RouteResponse r;
  v1::Decision& d = *r.add_decisions();
  d.set_id(std::numeric_limits<uint64_t>::max());
  d.add_agents("a\"\n\xc3\xa4");
  d.set_propensity(0.1);
  d.set_receipt(std::string("\0\xff", 2));
  EXPECT_EQ(MessageJson(r),
            "{\"decisions\":[{\"id\":\"18446744073709551615\",\"agents\":[\"a\\\"\\n\xc3\xa4\"],"
            "\"propensity\":0.1,\"policy\":\"\",\"receipt\":\"AP8=\",\"fallbacks\":[],"
            "\"kept\":false}]}");
  v1::MetricResult m;
  m.set_half_interval(std::numeric_limits<double>::infinity());
  m.set_mean(NAN);
  EXPECT_THAT(MessageJson(m), HasSubstr("\"mean\":\"NaN\""));
  EXPECT_THAT(MessageJson(m), HasSubstr("\"half_interval\":\"Infinity\""));
  // What was written is read again.
  v1::RouteResponse back;
  ASSERT_TRUE(ReadMessage(*ParseObject(MessageJson(r)), &back).ok());
  EXPECT_EQ(back.SerializeAsString(), r.SerializeAsString());
  EXPECT_EQ(ErrorBody("A", "b\xff", 2),
            "{\"error\":{\"code\":\"A\",\"message\":\"b\xef\xbf\xbd\",\"retry_after_s\":2}}");
}

TEST(HttpJson, AChatIsAQuery) {
  const auto chat = ReadChat(R"({"model": "auto", "user": "u-1", "temperature": 2, "n": null,
      "seed": [{"odd": true}], "stream": true, "max_tokens": 10, "tools": [{"type": "function"}],
      "metadata": {"session": "s", "task": "math", "tags": "a, b,", "exclude": ["x"],
                   "max_cost_usd": "0.5", "features": "1,2.5", "previous": "AQI=", "other": 7},
      "messages": [{"role": "system", "content": "be short"},
                   {"role": "user", "content": "first"},
                   {"role": "assistant", "content": null, "tool_calls": []},
                   {"role": "user", "content": [{"type": "text", "text": "one"},
                                                {"type": "image_url", "image_url": {}},
                                                {"type": "text", "text": "two"}]},
                   {"role": "assistant", "content": "sure"}]})");
  ASSERT_TRUE(chat.ok()) << chat.status();
  const v1::Query& q = chat->query;
  EXPECT_EQ(q.unit(), "u-1");
  EXPECT_EQ(q.session(), "s");
  EXPECT_EQ(q.task(), "math");
  EXPECT_THAT(q.tag(), testing::ElementsAre("a", "b"));
  EXPECT_THAT(q.exclude(), testing::ElementsAre("x"));
  EXPECT_EQ(q.max_cost_usd(), 0.5);
  EXPECT_THAT(q.features(), testing::ElementsAre(1, 2.5));
  EXPECT_EQ(q.previous(), "\x01\x02");
  EXPECT_EQ(q.text(), "") << "the server may have no model of it";
  EXPECT_EQ(chat->text, "one\ntwo");

  const std::string said = "\"messages\": [{\"role\": \"user\", \"content\": \"x\"}]";
  const std::pair<std::string, const char*> kBad[] = {
      {"{}", "messages: absent; allowed: array"},
      {"{\"messages\": 1}", "messages: number; allowed: array"},
      {"{\"messages\": []}", "messages: empty"},
      {"{\"messages\": [{}]}", "messages[0].role: absent; allowed: string"},
      {"{\"messages\": [1]}", "messages[0]: number; allowed: object"},
      {R"({"messages": [{"role": "user", "content": "a"}, {"role": "system"},
           {"role": "user", "content": 5}]})",
       "messages[2].content: number; allowed: string or array of parts"},
      {R"({"messages": [{"role": "user", "content": ["a"]}]})",
       "messages[0].content[0]: string; allowed: object"},
      {R"({"messages": [{"role": "user", "content": [{"type": "text", "text": 1}]}]})",
       "messages[0].content[0].text: number; allowed: string"},
      {R"({"messages": [{"role": "user", "content": [{"type": "text"}]}]})",
       "messages[0].content[0].text: absent"},
      {"{\"model\": 1, " + said + "}", "model: number; allowed: string"},
      {"{\"stream\": \"yes\", " + said + "}", "stream: string; allowed: true or false"},
      {"{\"max_tokens\": \"9\", " + said + "}", "max_tokens: string; allowed: number"},
      {"{\"tools\": {}, " + said + "}", "tools: object; allowed: array"},
      {"{\"user\": 1, " + said + "}", "user: number; allowed: string"},
      {"{\"metadata\": 1, " + said + "}", "metadata: number; allowed: object"},
      {"{\"metadata\": {\"task\": 1}, " + said + "}", "metadata.task: number; allowed: string"},
      {"{\"metadata\": {\"tags\": 1}, " + said + "}", "metadata.tags: number; allowed: an array"},
      {"{\"metadata\": {\"max_cost_usd\": \"nan\"}, " + said + "}", "metadata.max_cost_usd: 'nan'"},
      {"{\"metadata\": {\"max_cost_usd\": \"inf\"}, " + said + "}", "metadata.max_cost_usd: 'inf'"},
      {"{\"metadata\": {\"features\": \"1,x\"}, " + said + "}", "metadata.features[1]: 'x'"},
      {"{\"metadata\": {\"previous\": \"?\"}, " + said + "}", "metadata.previous: '?'"},
  };
  for (const auto& [body, why] : kBad) EXPECT_THAT(ChatError(body), HasSubstr(why)) << body;
}

TEST(HttpHeads, OneRequestIsOneRequest) {
  const std::string get = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
  EXPECT_EQ(MeasureHttp(get).state, HttpShape::kWhole);
  EXPECT_EQ(MeasureHttp(get + "GET").head, get.size()) << "the next one is not this one's";
  for (size_t n = 0; n < get.size(); ++n)
    EXPECT_EQ(MeasureHttp(get.substr(0, n)).state, HttpShape::kIncomplete) << n;
  const std::string post = "POST / HTTP/1.1\r\ncontent-length: 3\r\nExpect: 100-continue\r\n\r\n";
  EXPECT_EQ(MeasureHttp(post + "ab").state, HttpShape::kIncomplete);
  EXPECT_TRUE(MeasureHttp(post + "ab").expects);
  EXPECT_EQ(MeasureHttp(post + "abcd").state, HttpShape::kWhole);
  EXPECT_EQ(MeasureHttp(post + "abcd").body, 3u);

  const auto status = [](const std::string& headers) {
    return MeasureHttp("POST / HTTP/1.1\r\n" + headers + "\r\n").status;
  };
  EXPECT_EQ(status("Content-Length: 3\r\nContent-Length: 3\r\n"), 400);
  EXPECT_EQ(status("Content-Length: 3, 3\r\n"), 400);
  EXPECT_EQ(status("Content-Length: -3\r\n"), 400);
  EXPECT_EQ(status("Content-Length: +3\r\n"), 400);
  EXPECT_EQ(status("Content-Length: 0x3\r\n"), 400);
  EXPECT_EQ(status("Content-Length:\r\n"), 400);
  EXPECT_EQ(status("Content-Length : 3\r\n"), 400);
  EXPECT_EQ(status("Content-Length: 99999999999999999999\r\n"), 413);
  EXPECT_EQ(status("Content-Length: 1048577\r\n"), 413);
  EXPECT_EQ(status("Transfer-Encoding: chunked\r\n"), 411);
  EXPECT_EQ(status("no colon\r\n"), 400);
  EXPECT_EQ(status(": no name\r\n"), 400);
  EXPECT_EQ(status("A: b\nContent-Length: 3\r\n"), 400);
  EXPECT_EQ(status(std::string("A: \0\r\n", 6)), 400);
  EXPECT_EQ(status("A: " + std::string(20000, 'a') + "\r\n"), 431);
}

TEST(Metrics, NoNameBreaksThePageNorMakesASeriesTwice) {
  v1::StatsResponse s;
  s.set_decisions(3000);
  s.set_decide_p50_us(2);
  s.set_durability("power \"loss\"");
  for (const char* name : {"plain", "two\nlines", "quote\"s\\", "a\xff", "a\xfe", "a\\xff",
                           "\xc3\xa4", "\xed\xa0\x80", "plain"}) {
    v1::AgentStats& a = *s.add_agents();
    *a.mutable_agent() = name;
    a.set_breaker("open");
    a.set_breaker_ends_in_s(7);
  }
  v1::BudgetStats& b = *s.add_budgets();
  b.set_name("team \"a\"");
  b.set_limit_usd(5);
  b.set_spent_usd(1.5);
  const std::string page = PrometheusText(s);
  EXPECT_THAT(page, HasSubstr("\nsluice_decisions_total 3000\n"));
  EXPECT_THAT(page, HasSubstr("sluice_decide_seconds{quantile=\"0.5\"} "));
  EXPECT_THAT(page, HasSubstr("sluice_durability_info{survives=\"power \\\"loss\\\"\"} 1\n"));
  EXPECT_THAT(page, HasSubstr("sluice_agent_available{agent=\"two\\nlines\"} 0\n"));
  EXPECT_THAT(page, HasSubstr("{agent=\"a\\\\xfe\"}"));
  EXPECT_THAT(page, HasSubstr("{agent=\"\xc3\xa4\"}"));
  EXPECT_THAT(page, HasSubstr("sluice_agent_breaker{agent=\"plain\",state=\"open\"} 1\n"));
  EXPECT_THAT(page, HasSubstr("sluice_agent_breaker_ends_seconds{agent=\"plain #2\"} 7\n"));
  EXPECT_THAT(page, HasSubstr("sluice_budget_usd{budget=\"team \\\"a\\\"\",kind=\"limit\"} 5\n"));
  EXPECT_THAT(page, HasSubstr("kind=\"spent\"} 1.5\n"));
  EXPECT_THAT(page, HasSubstr("kind=\"reserved\"} 0\n"));
  for (const char* bad : {"\xff", "\xfe", "\xed\xa0\x80"}) EXPECT_THAT(page, Not(HasSubstr(bad)));
  std::set<std::string> series;
  for (const absl::string_view line : absl::StrSplit(page, '\n', absl::SkipEmpty())) {
    if (line[0] == '#') continue;
    EXPECT_EQ(line.compare(0, 7, "sluice_"), 0) << line;
    EXPECT_TRUE(series.emplace(line.substr(0, line.rfind(' '))).second) << line;
  }
}
}  // namespace http_json_test
SLUICE_END_NAMESPACE
