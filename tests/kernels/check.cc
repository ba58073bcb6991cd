// Checks the kernels of mgjax/kernels/cpu.cc without XLA, against plain loops, in the instructions that it is compiled for.
// CONTRIBUTING.md has the command that runs those of ARM under an emulator.

#include "../../mgjax/kernels/cpu.cc"

#include <cstdio>
#include <random>

static std::mt19937 generator(0);

static std::vector<float> Random(size_t count) {
  std::normal_distribution<float> normal;
  std::vector<float> numbers(count);
  for (float& number : numbers) number = normal(generator);
  return numbers;
}

static int failures = 0;

static void Expect(const char* what, int64_t n, const std::vector<double>& expected, const std::vector<float>& found, double most) {
  double error = 0, largest = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    error = std::max(error, std::abs(expected[i] - found[i]));
    largest = std::max(largest, std::abs(expected[i]));
  }
  bool good = error <= most * largest;
  std::printf("%s %ld: %.1e%s\n", what, long(n), error / largest, good ? "" : "  WRONG");
  failures += !good;
}

template <typename W>
static std::vector<W> As(const std::vector<float>& numbers) {
  std::vector<W> result(numbers.size());
  for (size_t i = 0; i < numbers.size(); ++i)
    if constexpr (sizeof(W) == 1) result[i] = W(std::lround(std::clamp(numbers[i] * 40, -127.f, 127.f)));
    else if constexpr (sizeof(W) == 2) result[i] = W(std::bit_cast<uint32_t>(numbers[i]) >> 16);
    else result[i] = numbers[i];
  return result;
}

template <int kRows, typename W>
static void CheckProduct(const char* type, int64_t in) {
  const int64_t out = 23;
  auto x = Random(kRows * in), scale = Random(out);
  auto w = As<W>(Random(out * in));
  std::vector<double> expected(kRows * out);
  for (int64_t r = 0; r < kRows; ++r)
    for (int64_t o = 0; o < out; ++o) {
      for (int64_t i = 0; i < in; ++i) expected[r * out + o] += double(x[r * in + i]) * Widened1(&w[o * in + i]);
      expected[r * out + o] *= scale[o];
    }
  std::vector<float> y(kRows * out);
  Columns<kRows>(x.data(), in, w.data(), scale.data(), y.data(), out, 0, 10);
  Columns<kRows>(x.data(), in, w.data(), scale.data(), y.data(), out, 10, out);
  Expect(type, in, expected, y, 1e-6);
#if defined(MGJAX_INT8_DOTS)
  if constexpr (sizeof(W) == 1) {
    if (in % (4 * kLanes)) return;
    Quantized quantized(kRows, in);
    for (int64_t r = 0; r < kRows; ++r) quantized.Set(r, x.data() + r * in, in);
    for (int64_t o = 0; o < out; ++o) DotOuts<kRows, 1>(quantized, 0, w.data(), in, scale.data(), y.data(), out, o);
    Expect("int8 by dots", in, expected, y, 1e-4);
  }
#endif
}

template <typename W>
static void CheckAttention(const char* type, int64_t slots, int64_t width) {
  const int64_t all = slots + 5;
  auto query = Random(width);
  auto keys = As<W>(Random(all * width)), values = As<W>(Random(all * width));
  std::vector<char> valid(all);
  for (auto& v : valid) v = generator() % 4 > 0;
  valid[0] = true;
  float scale = 1 / std::sqrt(float(width));
  auto scales = Random(2 * all);  // of keys, then of values; where they are int8
  for (float& number : scales) number = sizeof(W) == 1 ? number / 40 : 1;
  std::vector<double> scores(slots), expected(width);
  double most = -1e30, total = 0;
  for (int64_t m = 0; m < slots; ++m) {
    for (int64_t e = 0; e < width; ++e) scores[m] += double(query[e]) * Widened1(&keys[m * width + e]) * scales[m] * scale;
    if (valid[m]) most = std::max(most, scores[m]);
  }
  for (int64_t m = 0; m < slots; ++m) total += scores[m] = valid[m] ? std::exp(scores[m] - most) : 0;
  for (int64_t m = 0; m < slots; ++m)
    for (int64_t e = 0; e < width; ++e) expected[e] += scores[m] / total * Widened1(&values[m * width + e]) * scales[all + m];
  std::vector<float> y(width), room(slots + 2 * kLanes);
  const float *key_scales = sizeof(W) == 1 ? scales.data() : nullptr, *value_scales = key_scales ? key_scales + all : nullptr;
  AttendHead(query.data(), keys.data(), values.data(), key_scales, value_scales, (const bool*)valid.data(), slots, all, width,
             scale, room.data(), y.data());
  Expect(type, slots, expected, y, 1e-5);
}

int main() {
  for (int64_t in : {64, 1024, 100, 1100}) {
    CheckProduct<1, float>("float32, 1 row", in);
    CheckProduct<2, float>("float32, 2 rows", in);
    CheckProduct<4, float>("float32, 4 rows", in);
    CheckProduct<2, uint16_t>("bfloat16, 2 rows", in);
    CheckProduct<4, uint16_t>("bfloat16, 4 rows", in);
    CheckProduct<1, int8_t>("int8, 1 row", in);
    CheckProduct<2, int8_t>("int8, 2 rows", in);
    CheckProduct<4, int8_t>("int8, 4 rows", in);
  }
  for (int64_t slots : {1, 37, 300})
    for (int64_t width : {64, 20}) {
      CheckAttention<float>("attention, float32", slots, width);
      CheckAttention<uint16_t>("attention, bfloat16", slots, width);
      CheckAttention<int8_t>("attention, int8", slots, width);
    }
  std::printf("%d wrong, %d lanes\n", failures, kLanes);
  return failures != 0;
}
