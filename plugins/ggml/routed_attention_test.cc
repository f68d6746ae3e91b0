#include "sluice/plugins/ggml/routed_attention.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "absl/strings/str_cat.h"
#include "sluice/runtime/base/counter_rng.h"
#include "sluice/runtime/base/tbb_executor.h"
#include "sluice/tests/support/counting_allocator.h"

SLUICE_BEGIN_NAMESPACE
namespace ggml {
namespace routed_attention_test {
using testing::HasSubstr;
constexpr uint16_t kHidden = 0xFC00;

// A call as ggml lays it out: q [d, n_q, H] by row within a head, cache rows with all heads side by
// side, f16 or f32.
struct Case {
  int64_t n_q, n_kv, heads = 4, kv_heads = 2, d = 16, padding = 37;
  std::vector<float> q, k32, v32, out, sinks;
  std::vector<uint16_t> k16, v16, mask;
  FlashCall call;
  Case(int64_t queries, int64_t keys, bool half, uint64_t seed = 1) : n_q(queries), n_kv(keys) {
    const auto fill = [&](std::vector<float>& x, int64_t n, uint64_t what) {
      x.resize(n);
      for (size_t i = 0; i < x.size(); ++i)
        x[i] = 3 * static_cast<float>(RandomUniform({seed, what, 0, 0, i})) - 1.5f;
    };
    const int64_t rows = n_kv + padding;
    fill(q, n_q * heads * d, 1);
    fill(k32, rows * kv_heads * d, 2);
    fill(v32, rows * kv_heads * d, 3);
    out.assign(n_q * heads * d, NAN);
    for (float x : k32) k16.push_back(F32ToF16(x));
    for (float x : v32) v16.push_back(F32ToF16(x));
    if (half) {
      for (size_t i = 0; i < k32.size(); ++i) {
        k32[i] = F16ToF32(k16[i]);
        v32[i] = F16ToF32(v16[i]);
      }
    }
    call.layer = 0;
    call.q = {q.data(), n_q, heads, d, d, n_q * d};
    const DType t = half ? DType::kF16 : DType::kF32;
    call.k = {half ? static_cast<const void*>(k16.data()) : k32.data(),
              t,
              rows,
              kv_heads,
              d,
              kv_heads * d,
              d};
    call.v = {half ? static_cast<const void*>(v16.data()) : v32.data(),
              t,
              rows,
              kv_heads,
              d,
              kv_heads * d,
              d};
    call.scale = 0.4f;
    call.out = {out.data(), n_q, heads, d, heads * d, d};
    mask.assign(n_q * rows, kHidden);
    call.mask = mask.data();
    call.mask_stride = rows;
  }
  void Show(const std::function<bool(int64_t q, int64_t k)>& visible) {
    for (int64_t i = 0; i < n_q; ++i) {
      for (int64_t k = 0; k < n_kv; ++k)
        mask[i * call.mask_stride + k] = visible(i, k) ? 0 : kHidden;
    }
  }
  void Causal() {
    Show([&](int64_t i, int64_t k) { return k <= n_kv - n_q + i; });
  }
  // Straight from the definition.
  std::vector<double> Expected() const {
    std::vector<double> o(out.size());
    for (int64_t i = 0; i < n_q; ++i) {
      for (int64_t h = 0; h < heads; ++h) {
        std::vector<double> w(call.k.rows);
        double sum = call.sinks != nullptr ? std::exp(static_cast<double>(call.sinks[h])) : 0;
        for (int64_t k = 0; k < call.k.rows; ++k) {
          double x = 0;
          for (int64_t c = 0; c < d; ++c)
            x += static_cast<double>(call.q.at(i, h)[c]) *
                 static_cast<double>(k32[(k * kv_heads + h / (heads / kv_heads)) * d + c]);
          x *= static_cast<double>(call.scale);
          if (call.softcap > 0)
            x = static_cast<double>(call.softcap) *
                std::tanh(x / static_cast<double>(call.softcap));
          const double slope =
              call.max_bias > 0
                  ? std::exp2(-static_cast<double>(call.max_bias) / 4 * static_cast<double>(h + 1))
                  : 1;  // of 4 heads
          const double bias =
              call.mask == nullptr
                  ? 0
                  : slope * static_cast<double>(F16ToF32(call.mask[i * call.mask_stride + k]));
          w[k] = std::exp(x + bias);
          sum += w[k];
        }
        for (int64_t k = 0; k < call.k.rows && sum > 0; ++k) {
          for (int64_t c = 0; c < d; ++c)
            o[(i * heads + h) * d + c] +=
                w[k] / sum *
                static_cast<double>(v32[(k * kv_heads + h / (heads / kv_heads)) * d + c]);
        }
      }
    }
    return o;
  }
  void ExpectRight(const char* what) const {
    const std::vector<double> want = Expected();
    double worst = 0;
    for (size_t i = 0; i < want.size(); ++i)
      worst = std::max(worst, std::abs(want[i] - static_cast<double>(out[i])));
    EXPECT_LT(worst, 2e-5) << what;  // NaN fails too
  }
};
std::unique_ptr<RoutedAttention> Make(const std::string& text, int threads = 2) {
  const auto config = ParseConfig(text);
  EXPECT_TRUE(config.ok()) << config.status();
  auto r = RoutedAttention::Create(*config, MakeTbbExecutor(threads));
  EXPECT_TRUE(r.ok()) << r.status();
  return *std::move(r);
}

TEST(RoutedAttention, DenseIsRightForEveryMaskTypeAndLength) {
  const auto r = Make("");
  for (bool half : {false, true}) {
    for (int64_t n_q : {1, 2, 63, 130}) {
      for (int64_t n_kv : {int64_t{130}, int64_t{700}}) {
        const auto run = [&](const char* what, const std::function<void(Case&)>& set) {
          Case c(n_q, n_kv, half);
          set(c);
          ASSERT_TRUE(r->Run(c.call).ok());
          c.ExpectRight(what);
        };
        run("causal", [](Case& c) { c.Causal(); });
        run("window", [&](Case& c) {
          c.Show(
              [&](int64_t i, int64_t k) { return k <= n_kv - n_q + i && k > n_kv - n_q + i - 50; });
        });
        run("other sequences", [&](Case& c) {
          c.Show([&](int64_t i, int64_t k) { return k <= n_kv - n_q + i && (k + i) % 3 != 0; });
        });
        run("four sequences, cells one after the other", [&](Case& c) {
          c.Show([&](int64_t i, int64_t k) {
            return k * 4 / n_kv == i * 4 / n_q && k % (n_kv / 4) <= i % 17 + 40;
          });
        });
        run("holes", [&](Case& c) {
          c.Show([&](int64_t i, int64_t k) { return k <= n_kv - n_q + i && !(k > 3 && k < 90); });
        });
        run("scattered keys with values", [&](Case& c) {
          c.Show([&](int64_t i, int64_t k) { return (k * 7 + i * 13) % 61 == 0; });
          for (size_t i = 0; i < c.mask.size(); i += 5) {
            if (c.mask[i] == 0) c.mask[i] = F32ToF16(-0.5f);
          }
        });
        run("ALiBi", [&](Case& c) {
          c.Causal();
          c.call.max_bias = 8;
          for (int64_t i = 0; i < n_q; ++i) {
            for (int64_t k = 0; k <= n_kv - n_q + i; ++k)
              c.mask[i * c.call.mask_stride + k] =
                  F32ToF16(-static_cast<float>(n_kv - n_q + i - k) / 16);
          }
        });
        run("all", [](Case& c) { c.call.mask = nullptr; });
        run("biases", [](Case& c) {
          c.Causal();
          for (size_t i = 0; i < c.mask.size(); i += 7) c.mask[i] = F32ToF16(-0.5f);
        });
        run("soft-cap", [](Case& c) {
          c.Causal();
          c.call.softcap = 2;
        });
        run("sinks", [](Case& c) {
          c.Causal();
          c.sinks = {0.5f, -1, 3, -INFINITY};
          c.call.sinks = c.sinks.data();
        });
        run("biases and sinks", [](Case& c) {
          c.Causal();
          for (size_t i = 0; i < c.mask.size(); i += 7) c.mask[i] = F32ToF16(-0.5f);
          c.sinks = {0.5f, -1, 3, 0};
          c.call.sinks = c.sinks.data();
          c.call.softcap = 2;
        });
      }
    }
  }
}

TEST(RoutedAttention, BitsDoNotDependOnThreads) {
  const auto once = [](int threads, const std::function<void(Case&)>& set) {
    Case c(300, 700, true);
    set(c);
    const auto r = Make("", threads);
    EXPECT_TRUE(r->Run(c.call).ok());
    c.ExpectRight(threads == 1 ? "one worker" : "many workers");
    return c.out;
  };
  const auto window = [](Case& c) {
    c.Show([](int64_t i, int64_t k) { return k <= 400 + i && k > 400 + i - 150; });
  };
  EXPECT_EQ(once(1, window), once(16, window));
  const auto all = [](Case& c) { c.call.mask = nullptr; };
  EXPECT_EQ(once(1, all), once(16, all));
  const auto scattered = [](Case& c) {
    c.Show([](int64_t i, int64_t k) { return (k * 7 + i * 13) % 61 == 0; });
  };
  EXPECT_EQ(once(1, scattered), once(16, scattered));
}

TEST(RoutedAttention, AQueryThatSeesNothingGivesZero) {
  Case c(2, 64, false);
  c.Show([](int64_t i, int64_t) { return i == 1; });
  ASSERT_TRUE(Make("")->Run(c.call).ok());
  for (int64_t i = 0; i < c.heads * c.d; ++i) EXPECT_EQ(c.out[i], 0);
}

TEST(RoutedAttention, RoutersSkipAndCountersSaySo) {
  const auto dense = Make("attention = dense"),
             sparse = Make("prefill = mean_pool:k=2\ndecode = sink_window:sink=16,window=64"),
             full = Make("attention = mean_pool:k=1000"),
             late = Make("attention = mean_pool:k=2\nmin_keys = 2000");
  Case a(128, 1024, true);
  a.Causal();
  for (RoutedAttention* r : {dense.get(), sparse.get(), full.get(), late.get()})
    ASSERT_TRUE(r->Run(a.call).ok());
  EXPECT_EQ(dense->counters().at(0).work.density(), 1);
  EXPECT_LT(sparse->counters().at(0).work.density(), 0.4);
  EXPECT_EQ(full->counters().at(0).work.density(), 1);
  EXPECT_EQ(late->counters().at(0).work.density(), 1);
  EXPECT_EQ(late->counters().at(0).routed, 0);
  Case b(1, 1024, true);
  b.Causal();
  b.call.layer = 1;
  ASSERT_TRUE(sparse->Run(b.call).ok());
  EXPECT_EQ(sparse->counters().at(1).work.exact_pairs, 4 * (16 + 64));
  EXPECT_THAT(CountersJson(sparse->config(), sparse->counters()),
              HasSubstr("\"layer\": 1, \"calls\": 1, \"routed\": 1"));
}

TEST(RoutedAttention, KnowsStaleKeysByTheirPlaceAndLook) {
  const std::string text = "attention = mean_pool:k=2";
  const auto once = [&](Case& c) {
    EXPECT_TRUE(Make(text)->Run(c.call).ok());
    return c.out;
  };
  const auto r = Make(text);
  Case first(256, 256, true, 1), second(256, 256, true, 2), more(1, 300, true, 2),
      other(1, 300, true, 3);
  for (Case* c : {&first, &second, &more, &other}) c->Causal();
  ASSERT_TRUE(r->Run(first.call).ok());
  ASSERT_TRUE(r->Run(second.call).ok());  // the cache was cleared, another prompt came
  EXPECT_EQ(second.out, once(second));
  ASSERT_TRUE(r->Run(more.call).ok());  // goes on, though some keys came without a call
  EXPECT_EQ(more.out, once(more));
  ASSERT_TRUE(r->Run(other.call).ok());  // as long, and other keys
  EXPECT_EQ(other.out, once(other));
}

TEST(RoutedAttention, LayersMayShareAPlan) {
  const auto r = Make("attention = cross_layer(FS | mean_pool:k=5)");
  Case a(64, 1500, true, 1), b(64, 1500, true, 2);
  a.Causal();
  b.Causal();
  b.call.layer = 1;
  b.call.mask = a.call.mask;
  ASSERT_TRUE(r->Run(a.call).ok());
  ASSERT_TRUE(r->Run(b.call).ok());
  EXPECT_EQ(r->counters().at(0).work.exact_pairs, r->counters().at(1).work.exact_pairs);
  Case alone(64, 1500, true, 2);
  alone.Causal();
  ASSERT_TRUE(Make("attention = mean_pool:k=5")->Run(alone.call).ok());
  EXPECT_NE(alone.out, b.out);  // the other layer's lists
}

// What a host with RoPE keeps: q and k of the case, each turned to its place.
struct Turned {
  static constexpr double kBase = 5000;
  Case c;
  std::vector<float> q_pre, k_pre;
  Turned(int64_t queries, int64_t keys, uint64_t seed)
      : c(queries, keys, false, seed), q_pre(c.q), k_pre(c.k32) {
    c.Causal();
    c.call.rope_base = static_cast<float>(kBase);
    for (int64_t i = 0; i < queries; ++i) {
      for (int64_t h = 0; h < c.heads; ++h) Turn(keys - queries + i, &c.q[(h * queries + i) * c.d]);
    }
    for (int64_t r = 0; r < keys; ++r) {
      for (int64_t h = 0; h < c.kv_heads; ++h) Turn(r, &c.k32[(r * c.kv_heads + h) * c.d]);
    }
  }
  void Turn(int64_t position, float* x) const {
    for (int64_t i = 0; i < c.d / 2; ++i) {
      const double angle =
          static_cast<double>(position) *
          std::pow(kBase, -2.0 * static_cast<double>(i) / static_cast<double>(c.d));
      const double a = static_cast<double>(x[2 * i]);
      const double b = static_cast<double>(x[2 * i + 1]);
      x[2 * i] = static_cast<float>(a * std::cos(angle) - b * std::sin(angle));
      x[2 * i + 1] = static_cast<float>(a * std::sin(angle) + b * std::cos(angle));
    }
  }
  // By a session whose host has what was before RoPE.
  std::vector<float> Expected(const std::string& policy) const {
    auto session = AttentionSession::Create({.heads = static_cast<int>(c.heads),
                                             .kv_heads = static_cast<int>(c.kv_heads),
                                             .head_dim = static_cast<int>(c.d),
                                             .max_queries = c.n_q,
                                             .max_kv = c.n_kv,
                                             .policy = policy});
    EXPECT_TRUE(session.ok()) << session.status();
    AttentionInputs in;
    in.q = c.call.q;
    in.k = c.call.k;
    in.v = c.call.v;
    in.k.rows = in.v.rows = c.n_kv;
    in.q_begin = c.n_kv - c.n_q;
    in.scale = c.call.scale;
    in.rope_base = static_cast<float>(kBase);
    in.q_pre = in.q;
    in.q_pre.data = q_pre.data();
    in.k_pre = in.k;
    in.k_pre.data = k_pre.data();
    std::vector<float> o(c.out.size());
    EXPECT_TRUE(
        (*session)->Run(0, in, {.o = {o.data(), c.n_q, c.heads, c.d, c.heads * c.d, c.d}}).ok());
    return o;
  }
};
void ExpectNear(const std::vector<float>& got, const std::vector<float>& want) {
  ASSERT_EQ(got.size(), want.size());
  for (size_t i = 0; i < got.size(); ++i) ASSERT_NEAR(got[i], want[i], 1e-5) << i;
}

TEST(RoutedAttention, RoutersReadWhatWasBeforeRope) {
  const std::string policy = "seer_attention:gate=identity,block=16,density=0.2";
  auto r = Make("attention = " + policy);
  Turned first(64, 1436, 3);
  ASSERT_TRUE(r->Run(first.c.call).ok());
  ExpectNear(first.c.out, first.Expected(policy));
  EXPECT_EQ(r->counters().at(0).routed, 1);
  EXPECT_LT(r->counters().at(0).work.density(), 0.4);

  // The same sequence goes on; then another lies where it lay.
  Turned next(64, 1500, 3);
  ASSERT_TRUE(r->Run(next.c.call).ok());
  ExpectNear(next.c.out, next.Expected(policy));
  Turned other(64, 1500, 4);
  ASSERT_TRUE(r->Run(other.c.call).ok());
  ExpectNear(other.c.out, other.Expected(policy));
  EXPECT_EQ(r->counters().at(0).no_rope, 0);
}
TEST(RoutedAttention, WithoutARotationToUndoSuchRoutersStayAway) {
  auto r = Make("attention = seer_attention:gate=identity,block=16,density=0.2");
  Turned t(64, 1500, 3);
  t.c.call.rope_base = 0;
  ASSERT_TRUE(r->Run(t.c.call).ok());
  const LayerCounters& counters = r->counters().at(0);
  EXPECT_EQ(counters.no_rope, 1);
  EXPECT_EQ(counters.routed, 0);
  EXPECT_EQ(counters.work.density(), 1);
  EXPECT_THAT(CountersJson(r->config(), r->counters()), HasSubstr("\"no_rope\": 1"));
}

TEST(ParseConfig, NamesLineAndChoices) {
  const auto error = [](absl::string_view text) {
    return std::string(ParseConfig(text).status().message());
  };
  EXPECT_THAT(error("\n# fine\nattention = nothing"),
              HasSubstr("line 3: attention: no method 'nothing'"));
  EXPECT_THAT(error("router = dense"),
              HasSubstr("unknown key 'router'; known: attention, prefill"));
  EXPECT_THAT(error("dense"), HasSubstr("is not key = value"));
  EXPECT_THAT(error("min_keys = -1"), HasSubstr("allowed 0 to"));
  const auto c = ParseConfig("attention = per_layer(2*dense | hip:mask_k=512)  # both\nthreads=3");
  ASSERT_TRUE(c.ok()) << c.status();
  EXPECT_EQ(c->decode, "per_layer(2*dense | hip:mask_k=512)");
  EXPECT_EQ(c->threads, 3);
}

TEST(TakesStep, OnlyWhereItPays) {
  Config c;
  EXPECT_FALSE(TakesStep(c, 100000, (2 << 20) - 1));
  EXPECT_TRUE(TakesStep(c, 1000, 2 << 20));
  c.decode_min_keys = 500;
  EXPECT_TRUE(TakesStep(c, 500, 1));
  EXPECT_FALSE(TakesStep(c, 499, int64_t{1} << 30));
}
TEST(RoutedAttention, WrongShapesAreRefused) {
  Case c(2, 64, false);
  c.call.q.heads = 3;
  EXPECT_THAT(Make("")->Run(c.call).message(), HasSubstr("q [2, 3, 16]"));
}
// Two kinds of masks in turn, as layers that slide and layers that do not have them.
TEST(RoutedAttention, ReadsEachMaskOncePerPass) {
  auto attention = RoutedAttention::Create({});
  ASSERT_TRUE(attention.ok());
  Case causal(5, 90, true);
  causal.Causal();
  Case slides(5, 90, true);
  const auto run = [&](Case& c, int layer) {
    c.call.layer = layer;
    ASSERT_TRUE((*attention)->Run(c.call).ok());
    const std::vector<double> expected = c.Expected();
    for (size_t i = 0; i < expected.size(); ++i) EXPECT_NEAR(c.out[i], expected[i], 2e-3) << i;
  };
  for (int pass = 1; pass <= 2; ++pass) {
    // The second pass finds another window at the same address.
    slides.Show([&](int64_t i, int64_t k) { return k <= 85 + i && k > 85 + i - 20 * pass; });
    for (int layer = 0; layer < 6; ++layer) run(layer % 2 == 0 ? slides : causal, layer);
    EXPECT_EQ((*attention)->masks_read(), 2 * pass);
  }
}
// Steps as a host that decodes makes them: masks of other contents where the last ones were, a key
// more each. What a first step made serves the next ones.
TEST(RoutedAttention, StepsAllocateNothing) {
  for (const char* policy : {"dense", "sink_window:sink=4,window=32", "mean_pool:k=2"}) {
    for (bool holes : {false, true}) {
      for (float bias : {0.0f, 8.0f}) {
        const auto r = Make(absl::StrCat("attention = ", policy, "\nthreads = 1"));
        Case c(1, 700, true);
        c.call.max_bias = bias;
        const auto step = [&](int64_t keys) {
          c.Show([&](int64_t, int64_t k) { return k < keys && !(holes && k > 9 && k < 90); });
          if (bias > 0) c.mask[2] = F32ToF16(-0.25f);
          for (int layer = 0; layer < 3; ++layer) {
            c.call.layer = layer;
            ASSERT_TRUE(r->Run(c.call).ok());
          }
        };
        step(650);
        const int64_t before = AllocationCount();
        for (int64_t keys = 651; keys < 660; ++keys) step(keys);
        EXPECT_EQ(AllocationCount(), before) << policy << " " << holes << " " << bias;
      }
    }
  }
}
// One cache of several sequences: `cell` says where token t of a sequence lies. Each sequence
// gives, bit for bit, what it gives with a cache of its own.
struct Unified {
  struct Chunk {
    int sequence;
    int64_t first, count;  // tokens
  };
  std::function<int64_t(int sequence, int64_t token)> cell;
  const Case& tokens(int sequence) const { return *own.at(sequence); }
  std::vector<std::unique_ptr<Case>> own;  // queries and keys of whole sequences

  explicit Unified(int sequences, int64_t length) {
    for (int s = 0; s < sequences; ++s) {
      own.push_back(std::make_unique<Case>(length, length, true, 10 + s));
      own.back()->Causal();
    }
  }
  static int64_t Queries(const std::vector<Chunk>& pass) {
    int64_t n = 0;
    for (const Chunk& c : pass) n += c.count;
    return n;
  }
  // The pass as a host with one cache of `cells` hands it over.
  Case Together(const std::vector<Chunk>& pass, int64_t cells) const {
    Case all(Queries(pass), cells, true, 99);  // hides everything
    const int64_t row = all.kv_heads * all.d;
    int64_t i = 0;
    for (const Chunk& c : pass) {
      for (int64_t t = c.first; t < c.first + c.count; ++t, ++i) {
        const Case& from = tokens(c.sequence);
        for (int64_t h = 0; h < all.heads; ++h)
          std::copy_n(from.call.q.at(t, h), all.d, &all.q[(h * all.n_q + i) * all.d]);
        for (int64_t u = 0; u <= t; ++u) {
          const int64_t at = cell(c.sequence, u);
          all.mask[i * all.call.mask_stride + at] = 0;
          std::copy_n(&from.k16[u * row], row, &all.k16[at * row]);
          std::copy_n(&from.v16[u * row], row, &all.v16[at * row]);
        }
      }
    }
    return all;
  }
  // What each chunk gives alone, in the pass's order.
  std::vector<float> Apart(RoutedAttention& r, const std::vector<Chunk>& pass, int layer) const {
    std::vector<float> out;
    for (const Chunk& c : pass) {
      const Case& from = tokens(c.sequence);
      FlashCall call = from.call;
      std::vector<float> o(c.count * from.heads * from.d);
      call.layer = layer;
      call.stream = c.sequence;
      call.q.data = from.call.q.at(c.first, 0);
      call.q.rows = call.out.rows = c.count;
      call.mask += c.first * call.mask_stride;
      call.out.data = o.data();
      EXPECT_TRUE(r.Run(call).ok());
      out.insert(out.end(), o.begin(), o.end());
    }
    return out;
  }
};

TEST(RoutedAttention, SequencesOfOneCacheAreRoutedEachOnItsOwn) {
  struct Way {
    const char* name;
    std::function<int64_t(int, int64_t)> cell;
    bool steps;  // are routed: cells are one after the other
  };
  const Way ways[] = {
      {"one after the other", [](int s, int64_t t) { return 400 * s + t; }, true},
      {"interleaved", [](int s, int64_t t) { return 3 * t + s; }, false},
      {"in pieces", [](int s, int64_t t) { return t / 50 * 150 + s * 50 + t % 50; }, false}};
  using Pass = std::vector<Unified::Chunk>;
  const Pass passes[] = {{{0, 0, 200}, {1, 0, 150}, {2, 0, 100}},  // prompts
                         {{0, 200, 64}, {2, 100, 40}},
                         {{1, 150, 1}, {0, 264, 64}, {2, 140, 1}},  // a prompt between steps
                         {{0, 328, 1}, {1, 151, 1}, {2, 141, 1}}};
  for (const char* policy :
       {"mean_pool:k=2", "sink_window:sink=4,window=32", "cross_layer(FS | mean_pool:k=2)"}) {
    for (const Way& way : ways) {
      Unified u(3, 400);
      u.cell = way.cell;
      const std::string config = absl::StrCat("attention = ", policy);
      const auto together = Make(config), apart = Make(config), exact = Make("");
      for (const Pass& pass : passes) {
        for (int layer = 0; layer < 2; ++layer) {
          Case all = u.Together(pass, 1200);
          all.call.layer = layer;
          const absl::Status ran = together->Run(all.call);
          ASSERT_TRUE(ran.ok()) << ran << " " << policy << ", " << way.name << ", layer " << layer;
          const std::vector<float> routed = all.out;
          const std::vector<float> alone = u.Apart(*apart, pass, layer);
          ASSERT_TRUE(exact->Run(all.call).ok());
          int64_t i = 0;
          bool differs = false;
          for (const auto& c : pass) {
            const bool step = c.count == 1;
            const std::vector<float>& want = !step || way.steps ? alone : all.out;
            for (int64_t n = 0; n < c.count * all.heads * all.d; ++n, ++i) {
              if (step && !way.steps) {
                ASSERT_NEAR(routed[i], want[i], 1e-5) << way.name << " " << i;
              } else {
                ASSERT_EQ(routed[i], want[i]) << policy << ", " << way.name << " " << i;
              }
              differs = differs || routed[i] != all.out[i];
            }
          }
          EXPECT_EQ(differs, Unified::Queries(pass) > 3 || way.steps) << way.name;
        }
      }
      const int64_t routed_passes = way.steps ? 4 : 3;
      EXPECT_EQ(together->counters().at(0).routed, routed_passes) << way.name;
      EXPECT_LT(together->counters().at(0).work.density(), 0.9);
    }
  }
}
// Cells are given to another sequence, tokens are taken back, sinks count for each.
TEST(RoutedAttention, CellsOfASequenceMayChangeHands) {
  const auto r = Make("attention = mean_pool:k=2");
  for (uint64_t seed : {1u, 2u, 1u}) {
    for (int64_t keys : {300, 380, 340}) {
      Unified u(2, 400);
      u.cell = [](int s, int64_t t) { return 2 * t + s; };
      u.own[0] = std::make_unique<Case>(400, 400, true, seed);
      u.own[0]->Causal();
      const std::vector<Unified::Chunk> pass = {{0, keys - 40, 40}, {1, 0, 40}};
      std::vector<float> sinks = {0.5f, -1, 3, 0};
      Case all = u.Together(pass, 800);
      all.call.sinks = sinks.data();
      for (auto& own : u.own) own->call.sinks = sinks.data();
      ASSERT_TRUE(r->Run(all.call).ok());
      EXPECT_EQ(all.out, u.Apart(*Make("attention = mean_pool:k=2"), pass, 0));
    }
  }
}
// Two drafts of one sequence are two sequences: a layer that uses the plans of another finds each
// its own.
TEST(RoutedAttention, SequencesThatShareCellsKeepTheirPlansApart) {
  const char* policy = "attention = cross_layer(FS | mean_pool:block=16,k=8)";
  const auto together = Make(policy), first = Make(policy), second = Make(policy);
  Case both(2, 600, true), one(1, 600, true), two(1, 600, true);
  both.Show([](int64_t, int64_t k) { return k < 600; });
  one.Causal();
  two.Causal();
  for (int64_t h = 0; h < both.heads; ++h) {
    std::copy_n(both.call.q.at(0, h), both.d, &one.q[h * both.d]);
    std::copy_n(both.call.q.at(1, h), both.d, &two.q[h * both.d]);
  }
  for (int layer = 0; layer < 2; ++layer) {
    for (Case* c : {&both, &one, &two}) c->call.layer = layer;
    ASSERT_TRUE(together->Run(both.call).ok());
    ASSERT_TRUE(first->Run(one.call).ok());
    ASSERT_TRUE(second->Run(two.call).ok());
    std::vector<float> apart = one.out;
    apart.insert(apart.end(), two.out.begin(), two.out.end());
    EXPECT_EQ(both.out, apart) << layer;
  }
}
// More sequences than are kept: all right, some unrouted.
TEST(RoutedAttention, ManySequencesAreRight) {
  const auto r = Make("attention = mean_pool:k=1000");
  for (int pass = 0; pass < 2; ++pass) {
    Case c(40, 40 * 20, true, 5);
    c.Show([&](int64_t i, int64_t k) { return k >= 20 * i && k < 20 * i + 10 + pass; });
    ASSERT_TRUE(r->Run(c.call).ok());
    c.ExpectRight("forty sequences");
  }
}
// Largest biases that differ from call to call have slopes of their own.
TEST(RoutedAttention, SlopesAreThoseOfTheCall) {
  const auto r = Make("");
  Case c(1, 200, true);
  c.Causal();
  for (size_t i = 0; i < 200; i += 3) c.mask[i] = F32ToF16(-static_cast<float>(i) / 64);
  for (float bias : {8.0f, 4.0f, 8.0f, 0.0f, 4.0f}) {
    c.call.max_bias = bias;
    ASSERT_TRUE(r->Run(c.call).ok());
    c.ExpectRight("biases in turn");
  }
}
}  // namespace routed_attention_test
}  // namespace ggml
SLUICE_END_NAMESPACE
