// Kernels of the language model's decode step on CPU, called by XLA (jax.ffi); kernels/cpu.py compiles and loads them.
//
// A decode step has few rows and reads every weight once: it takes as long as reading them takes. `Product` reads weights
// in the type that they are stored in and sums in float32; `Attend` reads the slots of the KV cache that are filled.
// Vectors are those of the compiler (GCC and Clang), as wide as the CPU that it compiles for has them.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <thread>
#include <vector>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
constexpr int kRegisters = 32;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
constexpr int kRegisters = 16;
#elif defined(__aarch64__)
constexpr int kLanes = 4;
constexpr int kRegisters = 32;
#else
constexpr int kLanes = 4;
constexpr int kRegisters = 16;
#endif

typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));
typedef uint32_t Words __attribute__((vector_size(4 * kLanes)));
typedef uint16_t Halves __attribute__((vector_size(2 * kLanes)));
typedef int8_t Bytes __attribute__((vector_size(kLanes)));

template <typename V>
inline V Load(const void* p) {
  V v;
  std::memcpy(&v, p, sizeof(V));
  return v;
}

// Numbers of each type as float32. bfloat16 (uint16_t here) is the upper half of it.
inline Floats Widened(const float* p) { return Load<Floats>(p); }
#if defined(__AVX512F__)  // GCC converts these vectors number by number
inline Floats Widened(const uint16_t* p) {
  return (Floats)_mm512_slli_epi32(_mm512_cvtepu16_epi32(Load<__m256i>(p)), 16);
}
inline Floats Widened(const int8_t* p) { return (Floats)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(Load<__m128i>(p))); }
#elif defined(__AVX2__)
inline Floats Widened(const uint16_t* p) {
  return (Floats)_mm256_slli_epi32(_mm256_cvtepu16_epi32(Load<__m128i>(p)), 16);
}
inline Floats Widened(const int8_t* p) {
  return (Floats)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)));
}
#else
inline Floats Widened(const uint16_t* p) {
  return (Floats)(__builtin_convertvector(Load<Halves>(p), Words) << 16);
}
inline Floats Widened(const int8_t* p) {
  return __builtin_convertvector(__builtin_convertvector(Load<Bytes>(p), Ints), Floats);
}
#endif
inline float Widened1(const float* p) { return *p; }
inline float Widened1(const int8_t* p) { return *p; }
inline float Widened1(const uint16_t* p) {
  uint32_t bits = uint32_t(*p) << 16;
  float f;
  std::memcpy(&f, &bits, sizeof f);
  return f;
}

inline float Sum(Floats v) {
  float sums[kLanes];
  std::memcpy(sums, &v, sizeof v);
  for (int half = kLanes / 2; half; half /= 2)
    for (int i = 0; i < half; ++i) sums[i] += sums[i + half];
  return sums[0];
}

// Calls `run(task)` for every task below `count`, on XLA's threads and this one. It waits for the tasks, not for the
// helpers, who may come late or never: all threads of the pool may be waiting just as this one does.
template <typename F>
void InParallel(ffi::ThreadPool& pool, int64_t count, F run) {
  struct Progress {
    std::atomic<int64_t> claimed{0}, done{0};
  };
  auto progress = std::make_shared<Progress>();
  auto work = [=] {
    for (int64_t task; (task = progress->claimed.fetch_add(1, std::memory_order_relaxed)) < count;) {
      run(task);
      progress->done.fetch_add(1, std::memory_order_release);
    }
  };
  int64_t helpers = std::min<int64_t>(pool.num_threads(), count) - 1;
  for (int64_t i = 0; i < helpers; ++i) pool.Schedule([=] { work(); });
  work();
  for (int spins = 0; progress->done.load(std::memory_order_acquire) < count; ++spins)
    if (spins > 1000) std::this_thread::yield();
}

// The inputs [begin, end) of kRows rows times kOuts rows of weights.
template <int kRows, int kOuts, typename W>
inline void Tile(const float* x, const W* w, int64_t in, int64_t begin, int64_t end, float* sums) {
  Floats totals[kRows][kOuts] = {};
  int64_t i = begin;
  for (; i + kLanes <= end; i += kLanes) {
    Floats xs[kRows];
    for (int r = 0; r < kRows; ++r) xs[r] = Load<Floats>(x + r * in + i);
    for (int o = 0; o < kOuts; ++o) {
      const W* at = w + o * in + i;
      __builtin_prefetch(reinterpret_cast<const char*>(at) + 512);
      Floats ws = Widened(at);
      for (int r = 0; r < kRows; ++r) totals[r][o] += xs[r] * ws;
    }
  }
  for (int r = 0; r < kRows; ++r)
    for (int o = 0; o < kOuts; ++o) {
      float sum = Sum(totals[r][o]);
      for (int64_t j = i; j < end; ++j) sum += x[r * in + j] * Widened1(w + o * in + j);
      sums[r * kOuts + o] = sum;
    }
}

constexpr int64_t kChunk = 1024;  // inputs that the tiles of a few rows go over at once, to stay in the nearest cache

template <int kRows, typename W>
void Columns(const float* x, int64_t in, const W* w, const float* scale, float* y, int64_t out, int64_t begin, int64_t end) {
  constexpr int kOuts = std::min(8, (kRegisters - 4) / kRows / 4 * 4 > 0 ? (kRegisters - 4) / kRows / 4 * 4 : 2);
  int64_t chunk = kRows > 2 ? kChunk : in;
  for (int64_t first = 0; first < in; first += chunk) {
    int64_t last = std::min(in, first + chunk);
    auto tile = [&]<int kNum>(int64_t o) {
      float sums[kRows * kNum];
      Tile<kRows, kNum>(x, w + o * in, in, first, last, sums);
      for (int r = 0; r < kRows; ++r)
        for (int n = 0; n < kNum; ++n) {
          float* at = y + r * out + o + n;
          float sum = first ? *at + sums[r * kNum + n] : sums[r * kNum + n];
          *at = scale && last == in ? sum * scale[o + n] : sum;
        }
    };
    int64_t o = begin;
    for (; o + kOuts <= end; o += kOuts) tile.template operator()<kOuts>(o);
    for (; o < end; ++o) tile.template operator()<1>(o);
  }
}

template <typename W>
void Product(ffi::ThreadPool& pool, int64_t rows, const float* x, int64_t in, const W* w, const float* scale, float* y,
             int64_t out) {
  // A task is as many rows of weights as fit the nearest cache.
  int64_t size = std::max<int64_t>(8, 32 * 1024 / (in * int64_t(sizeof(W))) / 8 * 8);
  InParallel(pool, (out + size - 1) / size, [=](int64_t task) {
    int64_t begin = task * size, end = std::min(out, begin + size);
    for (int64_t r = 0; r < rows;) {
      const float* xr = x + r * in;
      float* yr = y + r * out;
      if (rows - r >= 4) { Columns<4>(xr, in, w, scale, yr, out, begin, end); r += 4; }
      else if (rows - r >= 2) { Columns<2>(xr, in, w, scale, yr, out, begin, end); r += 2; }
      else { Columns<1>(xr, in, w, scale, yr, out, begin, end); r += 1; }
    }
  });
}

ffi::Error ProductImpl(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> x, ffi::AnyBuffer w, ffi::Buffer<ffi::F32> scale,
                       ffi::ResultBuffer<ffi::F32> y) {
  auto xs = x.dimensions(), ws = w.dimensions();
  if (xs.size() != 2 || ws.size() != 2 || xs[1] != ws[1] || (scale.element_count() && int64_t(scale.element_count()) != ws[0]))
    return ffi::Error::InvalidArgument("mgjax_product takes x [n, i], weights [o, i] and scales [o] or [0]");
  const float* scales = scale.element_count() ? scale.typed_data() : nullptr;
  auto run = [&](auto* weights) {
    Product(pool, xs[0], x.typed_data(), xs[1], weights, scales, y->typed_data(), ws[0]);
    return ffi::Error::Success();
  };
  switch (w.element_type()) {
    case ffi::F32: return run(static_cast<const float*>(w.untyped_data()));
    case ffi::BF16: return run(static_cast<const uint16_t*>(w.untyped_data()));
    case ffi::S8: return run(static_cast<const int8_t*>(w.untyped_data()));
    default: return ffi::Error::InvalidArgument("mgjax_product takes weights of float32, bfloat16 or int8");
  }
}

// e^x for x <= 0, to 2 units in the last place (the polynomial of Cephes' expf); 0 below -87.
inline Floats Exp(Floats x) {
  const Floats least = Floats{} - 87.0f, magic = Floats{} + 12582912.0f;  // 1.5 * 2^23: adding it rounds to whole numbers
  Ints tiny = x < least;
  x = tiny ? least : x;
  Floats shifted = x * 1.44269504f + magic;
  Floats n = shifted - magic;
  Floats r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  Floats p = Floats{} + 1.9875691500e-4f;
  for (float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f}) p = p * r + c;
  p = p * r * r + r + 1.0f;
  Ints power = (((Ints)shifted - (Ints)magic) + 127) << 23;
  Floats y = p * (Floats)power;
  return tiny ? Floats{} : y;
}

// Softmax attention of one query to the first `slots` of a head's keys and values, but for those that are not valid.
template <typename W>
void AttendHead(const float* query, const W* keys, const W* values, const bool* valid, int64_t slots, int64_t width,
                float scale, float* scores, float* y) {
  constexpr float kNever = -std::numeric_limits<float>::infinity();
  float most = kNever;
  bool any = false;
  for (int64_t m = 0; m < slots; ++m) {
    scores[m] = kNever;
    if (valid && !valid[m]) continue;
    any = true;
    Tile<1, 1>(query, keys + m * width, width, 0, width, scores + m);
    scores[m] *= scale;
    most = std::max(most, scores[m]);  // NaN is not the largest, and stays NaN below
  }
  std::fill(y, y + width, 0.0f);
  if (!any) return;
  int64_t padded = (slots + kLanes - 1) / kLanes * kLanes;
  std::fill(scores + slots, scores + padded, kNever);
  Floats totals = {};
  for (int64_t m = 0; m < padded; m += kLanes) {
    Floats weights = Exp(Load<Floats>(scores + m) - most);
    totals += weights;
    std::memcpy(scores + m, &weights, sizeof weights);
  }
  float share = 1.0f / Sum(totals);
  int64_t e = 0;
  for (; e + kLanes <= width; e += kLanes) {
    Floats sum = {};
    for (int64_t m = 0; m < slots; ++m) sum += scores[m] * Widened(values + m * width + e);
    sum *= share;
    std::memcpy(y + e, &sum, sizeof sum);
  }
  for (; e < width; ++e) {
    for (int64_t m = 0; m < slots; ++m) y[e] += scores[m] * Widened1(values + m * width + e);
    y[e] *= share;
  }
}

ffi::Error AttendImpl(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> query, ffi::AnyBuffer key, ffi::AnyBuffer value,
                      ffi::Buffer<ffi::PRED> valid, ffi::Buffer<ffi::S32> filled, ffi::ResultBuffer<ffi::F32> y) {
  auto shape = key.dimensions();  // [b, h, m, e], the queries [b, h, e]
  auto queries = query.dimensions();
  bool fits = shape.size() == 4 && queries.size() == 3 && value.dimensions() == shape && queries[0] == shape[0] &&
              queries[1] == shape[1] && queries[2] == shape[3] && value.element_type() == key.element_type() &&
              (!valid.element_count() || int64_t(valid.element_count()) == shape[0] * shape[2]);
  if (!fits) return ffi::Error::InvalidArgument("mgjax_attend takes queries [b, h, e], keys and values [b, h, m, e]");
  int64_t heads = shape[1], all = shape[2], width = shape[3];
  int64_t slots = std::min<int64_t>(*filled.typed_data(), all);
  float scale = 1.0f / std::sqrt(float(width));
  auto run = [&](auto* keys, auto* values) {
    const float* q = query.typed_data();
    const bool* mask = valid.element_count() ? valid.typed_data() : nullptr;
    float* result = y->typed_data();
    InParallel(pool, shape[0] * heads, [=](int64_t task) {
      thread_local std::vector<float> scores;
      scores.resize(slots + kLanes);
      AttendHead(q + task * width, keys + task * all * width, values + task * all * width,
                 mask ? mask + task / heads * all : nullptr, slots, width, scale, scores.data(), result + task * width);
    });
    return ffi::Error::Success();
  };
  switch (key.element_type()) {
    case ffi::F32: return run(static_cast<const float*>(key.untyped_data()), static_cast<const float*>(value.untyped_data()));
    case ffi::BF16: return run(static_cast<const uint16_t*>(key.untyped_data()), static_cast<const uint16_t*>(value.untyped_data()));
    default: return ffi::Error::InvalidArgument("mgjax_attend takes keys and values of float32 or bfloat16");
  }
}

}  // namespace

#pragma GCC visibility push(default)

XLA_FFI_DEFINE_HANDLER_SYMBOL(mgjax_product, ProductImpl,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(mgjax_attend, AttendImpl,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::Buffer<ffi::PRED>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>());

#pragma GCC visibility pop
