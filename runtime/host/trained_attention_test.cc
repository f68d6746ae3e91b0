// Attentions and indexers whose weights were trained in PyTorch: a file holds inputs of its last
// layer and what the trainer computed from them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "sluice/routers/attention/common/reference.h"
#include "sluice/runtime/host/policy.h"
#include "sluice/runtime/weights/gguf.h"
#include "sluice/tests/support/router_harness.h"

SLUICE_BEGIN_NAMESPACE
namespace host {
namespace trained_attention_test {
std::string File(const std::string& name) { return absl::StrCat(ModelsFolder(), "/", name); }

// The inputs that a file holds, values and hidden states where they are there.
struct Golden {
  Gguf file;
  AttentionData data;
  std::vector<float> q_pre, k_pre, o;

  std::vector<float> Read(const std::string& name, int64_t inner) const {
    return *file.ReadF32(absl::StrCat("golden.", name),
                         {static_cast<uint64_t>(inner), static_cast<uint64_t>(data.q_count)});
  }
};
Golden Open(const std::string& method, const std::string& name, int64_t queries) {
  auto file = Gguf::Open(File(name));
  EXPECT_TRUE(file.ok()) << file.status();
  Golden g = {.file = *std::move(file)};
  // Of the model, where the method's own numbers are of something else.
  const auto size = [&](const char* of) {
    const auto of_model = g.file.Int(absl::StrCat("sluice.golden.", of));
    return of_model.ok() ? *of_model
                         : g.file.Int(absl::StrCat("sluice.", method, ".", of)).value_or(0);
  };
  AttentionData& a = g.data;
  a.q_count = a.kv_len = queries;
  a.width = size("width");
  a.heads = size("heads");
  a.kv_heads = size("kv_heads") > 0 ? size("kv_heads") : a.heads / 2;
  a.d = a.dv = size("head_dim");
  a.q = g.Read("q", a.heads * a.d);
  a.k = g.Read("k", a.kv_heads * a.d);
  return g;
}

const Registry& Methods() {
  static const Registry* all = [] {
    auto* made = new Registry;
    EXPECT_TRUE(AddBuiltinRouters(*made).ok());
    made->OpenWeightsWith(
        [](const std::string& path) -> absl::StatusOr<std::unique_ptr<const WeightSource>> {
          SLUICE_ASSIGN_OR_RETURN(Gguf file, Gguf::Open(path));
          return std::unique_ptr<const WeightSource>(std::make_unique<Gguf>(std::move(file)));
        });
    return made;
  }();
  return *all;
}

// A router with the weights of the file gives what the trainer's attention gave.
void ExpectTrainers(const std::string& method, const std::string& name, const char* settings) {
  constexpr int64_t kQueries = 128;
  Golden g = Open(method, name, kQueries);
  AttentionData& a = g.data;
  a.v = g.Read("v", a.kv_heads * a.d);
  a.hidden = g.Read("hidden", a.width);
  g.k_pre = g.Read("k_pre", a.kv_heads * a.d);
  const auto q_pre = g.file.ReadF32(
      "golden.q_pre", {static_cast<uint64_t>(a.heads * a.d), static_cast<uint64_t>(kQueries)});
  if (q_pre.ok()) g.q_pre = *q_pre;
  g.o = g.Read("o", a.heads * a.d);

  HarnessOptions o;
  o.methods = &Methods();
  o.adjust = [&](SessionOptions& s, AttentionInputs& in) {
    s.layers = 1;
    in.k_pre = in.k;
    in.k_pre.data = g.k_pre.data();
    if (g.q_pre.empty()) return;
    in.q_pre = in.q;
    in.q_pre.data = g.q_pre.data();
  };
  const RoutedRun r = RunRouter(absl::StrCat(method, ":weights=", File(name), ",", settings), a, o);
  ASSERT_TRUE(r.status.ok()) << r.status;
  std::vector<uint32_t> last = r.lists.back();
  last.erase(std::unique(last.begin(), last.end()), last.end());
  EXPECT_LT(std::ssize(last), kQueries) << "nothing was left out";
  for (size_t i = 0; i < g.o.size(); ++i) ASSERT_NEAR(r.o[i], g.o[i], 2e-3) << i;
}
TEST(TrainedAttention, NsaIsTheTrainers) {
  ExpectTrainers("nsa", "planted-nsa.gguf", "l=16,stride=8,block=16,n=4,init=1,local=1,window=32");
}
// Queries and keys are in the file as the trainer normalised them.
TEST(TrainedAttention, RoutingTransformerIsTheTrainers) {
  ExpectTrainers("routing_transformer", "planted-routing_transformer.gguf",
                 "clusters=8,window=32,norm=none");
}
TEST(TrainedAttention, SuperlinearIsTheTrainers) {
  ExpectTrainers("superlinear", "planted-superlinear.gguf",
                 "sw_index=5,k=2,p=0.5,e=0.5,back=2,ahead=0");
}
// A vision transformer's attention on test images: the router chooses the trainer's regions, and
// with the convolution of the values added, which is the caller's, gives what the trainer's
// attention gave.
TEST(TrainedAttention, BiFormerIsTheTrainers) {
  const auto file = Gguf::Open(File("vision-biformer.gguf"));
  ASSERT_TRUE(file.ok()) << file.status();
  const auto number = [&](const std::string& of) { return *file->Int("sluice." + of); };
  const int64_t side = number("golden.side");
  const int64_t tokens = side * side;
  const int64_t heads = number("biformer.heads");
  const int64_t d = number("biformer.head_dim");
  const int64_t width = heads * d;
  const int64_t regions = number("golden.regions");
  const int64_t k = number("golden.k");
  const int64_t conv = number("biformer.conv");
  const auto read = [&](const std::string& name, int64_t inner, int64_t rows) {
    return *file->ReadF32(name, {static_cast<uint64_t>(inner), static_cast<uint64_t>(rows)});
  };
  ASSERT_GE(number("golden.cases"), 2);
  for (int64_t i = 0; i < number("golden.cases"); ++i) {
    const std::string golden = absl::StrCat("golden.", i, ".");
    AttentionData a;
    a.q_count = a.kv_len = tokens;
    a.heads = a.kv_heads = heads;
    a.d = a.dv = d;
    a.q = read(golden + "q", width, tokens);
    a.k = read(golden + "k", width, tokens);
    a.v = read(golden + "v", width, tokens);
    HarnessOptions o;
    o.adjust = [&](SessionOptions&, AttentionInputs& in) {
      in.scale = 1 / std::sqrt(static_cast<float>(width));
    };
    const RoutedRun r = RunRouter(absl::StrCat("biformer:height=", side, ",width=", side,
                                               ",regions=", regions, ",k=", k, ",scale=width"),
                                  a, o);
    ASSERT_TRUE(r.status.ok()) << r.status;

    const std::vector<float> chosen = read(golden + "regions", k, regions * regions);
    const auto region = [&](int64_t t) {
      return t / side / (side / regions) * regions + t % side / (side / regions);
    };
    for (int64_t t = 0; t < tokens; ++t) {
      const float* of_region = chosen.data() + region(t) * k;
      std::vector<uint32_t> want;
      for (int64_t s = 0; s < tokens; ++s) {
        if (std::find(of_region, of_region + k, static_cast<float>(region(s))) != of_region + k)
          want.push_back(static_cast<uint32_t>(s));
      }
      for (int64_t h = 0; h < heads; ++h) ASSERT_EQ(r.lists[t * heads + h], want) << i << " " << t;
    }

    const std::string weights = absl::StrCat("biformer.", number(golden + "layer"), ".conv");
    const std::vector<float> fold = read(weights, conv * conv, width);
    const std::vector<float> bias =
        *file->ReadF32(weights + "_bias", {static_cast<uint64_t>(width)});
    const std::vector<float> want = read(golden + "o", width, tokens);
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t x = 0; x < width; ++x) {
        float o_and_conv = r.o[t * width + x] + bias[x];
        for (int64_t j = 0; j < conv * conv; ++j) {
          const int64_t row = t / side + j / conv - conv / 2;
          const int64_t column = t % side + j % conv - conv / 2;
          if (row < 0 || row >= side || column < 0 || column >= side) continue;
          o_and_conv += fold[x * conv * conv + j] * a.v[(row * side + column) * width + x];
        }
        ASSERT_NEAR(o_and_conv, want[t * width + x], 2e-3 * std::max(1.0f, std::abs(o_and_conv)))
            << i << " " << t << " " << x;
      }
    }
  }
}
// DSA's lists are the best tokens of the scores that the trainer's indexer gave.
TEST(TrainedAttention, IndexersAreTheTrainers) {
  constexpr int64_t kQueries = 96;
  constexpr int64_t kKept = 20;
  const std::string name = "lightning_indexer.gguf";
  Golden g = Open("lightning_indexer", name, kQueries);
  AttentionData& a = g.data;
  a.v = a.k;
  const std::vector<float> score = g.Read("score", kQueries);
  const int layers = static_cast<int>(*g.file.Int("sluice.lightning_indexer.layers"));
  HarnessOptions o;
  o.methods = &Methods();
  o.layer = layers - 1;
  o.adjust = [&](SessionOptions& s, AttentionInputs& in) {
    s.layers = layers;
    in.rope_base = 100000;
    in.q_pre = {};
    in.k_pre = {};
  };
  const RoutedRun r =
      RunRouter(absl::StrCat("dsa:index=learned,k=", kKept, ",weights=", File(name)), a, o);
  ASSERT_TRUE(r.status.ok()) << r.status;
  int64_t other = 0;
  for (int64_t i = 0; i < kQueries; ++i) {
    const float* row = score.data() + i * kQueries;
    const auto best = attention::reference::Best({row, row + i + 1}, kKept);
    const std::vector<uint32_t> want(best.begin(), best.end());
    other += r.lists[i * a.heads] != want;
  }
  EXPECT_LE(other, 1);  // scores that are equal but for rounding
}
}  // namespace trained_attention_test
}  // namespace host
SLUICE_END_NAMESPACE
