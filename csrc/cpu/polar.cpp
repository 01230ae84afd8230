// SPDX-License-Identifier: BSD-3-Clause
// polar: A = (M M^T)^(-1/2) M by rational functions of Gram matrices, in stages.
//
// A stage computes the Gram matrix R of X (X is M at first) in float64, and from it a Zolotarev function f, which is a
// sum of (R + pole)^-1 and raises small singular values. R has the squares of the singular values, which costs half of
// the digits. A stage goes on in one of three ways.
// - R resolves all singular values of X. A second function follows. The Gram matrix of f(X) is computed from R, and X
// is
//   multiplied once.
// - The accuracy of float32 is enough, and the singular values of f(X) are of order one. X is multiplied by f. The new
//   Gram matrix and the second function are computed in float32. Errors grow only with the norm of the second function,
//   which is below 3.
// - Otherwise X is multiplied by f, and the next stage computes a new Gram matrix in float64. So errors do not grow
// with
//   the condition number of M.
#include "kernels_cpu.h"
#include "lanczos.h"
#include "resolvents.h"

namespace rf::RF_ISA {

void polar_multiply(const double* q, const double* m, double* out, int64_t rows, int64_t inner, int64_t cols,
                    int threads) {
  multiply(rows, cols, inner, Strided<const double>{q, inner, 1}, Strided<const double>{m, cols, 1},
           Into<double>{out, cols}, threads);
}

namespace {

constexpr double kMargin = 1.01;  // factor on rtol, since the condition that decides the rank is an estimate
constexpr double kLowest = 5e-4;  // the first stage raises singular values of 1.5e-10 to this size
constexpr int kMostStages = 6, kProbes = MR, kSquares = 1 + kMostPoles;

// What a result needs. Singular values are relative to the largest one of X, and those of f(X) to 1.
struct Accuracy {
  double deviation;  // largest deviation of singular values of A from 1 by approximation
  double least;      // lower end l of the interval of f in the first stage; if poles are chosen, at least 0.9 rtol
  double next;       // l in later stages
  double resolved;   // singular values of X that R resolves
  double raised;     // singular values of f(X) from which the second function is the last one
  double unseen;     // below, singular values of X are lost in the rounding of R
  int poles;         // of f in every stage; 0: chosen to cost least
  bool single;       // the second function in float32, if this costs less
};
constexpr Accuracy kSingle{3e-7, 1e-7, 2e-3, 3e-5, 0.25, 3e-8, 0, true};
template <class S>
constexpr Accuracy kDefault = sizeof(S) == 4 ? Accuracy{4e-8, 5e-4, 5e-4, 1.25e-4, 0, 0, 3, false}
                                             : Accuracy{4e-8, 2e-3, 2e-3, 5e-4, 0, 0, 3, false};

// Memory for one matrix d x n. Rows of square matrices are one cache line longer than needed: rows whose distance is a
// power of two would all fall into the same few sets of the cache.
struct Work {
  double* memory;

  static int64_t stride(int64_t d) { return blocks(d, 8) * 8 + 8; }
  static int64_t size(int64_t d, int64_t n) {
    return (1 + kSquares) * d * stride(d) + lanczos_size(d) + d * n + 4 * kProbes * d + 3 * kProbes * n + 16 * 8;
  }
  double* take(int64_t count) {
    double* const taken = memory;
    memory += blocks(count, 8) * 8;
    return taken;
  }
};

// One matrix, or its transpose if it is tall, so that d <= n.
template <class S>
struct Polar {
  const Accuracy accuracy;
  int64_t d, n, ld;  // ld: row stride of the square matrices
  Strided<const S> m;
  S* out;
  bool tall;  // out is n x d
  int threads;
  double rtol;
  Matrix r, square[kSquares];
  double *vectors, *x, *probe, *short_rows, *long_rows;
  Rational applied[kMostStages];
  double least[kMostStages + 1];  // lower ends of the intervals of the functions applied
  double scale = 1;               // largest singular value that the stage allows for
  double squared_norm = 0, condition = 0;

  Polar(int64_t d, int64_t n, Strided<const S> m, S* out, bool tall, double rtol, bool single, Work work, int threads)
      : accuracy(single ? kSingle : kDefault<S>),
        d(d),
        n(n),
        ld(Work::stride(d)),
        m(m),
        out(out),
        tall(tall),
        threads(threads),
        rtol(rtol) {
    r = {work.take(d * ld), ld, 1};
    for (Matrix& s : square) s = {work.take(d * ld), ld, 1};
    vectors = work.take(lanczos_size(d));
    x = work.take(d * n);
    probe = work.take(kProbes * d);
    short_rows = work.take(3 * kProbes * d);
    long_rows = work.take(3 * kProbes * n);
    gaussian(probe, DType::f64, kProbes, d, d, Address{0, 0, 0, 0}, 1);
    least[0] = accuracy.poles ? accuracy.least : fmin(fmax(accuracy.least, 0.9 * rtol), 0.5);
  }

  // The singular value of M, divided by the largest one, that the stages before number `stage` have turned into x.
  double original(double x, int stage) const {
    for (; stage > 0; --stage) {
      double low = 0, high = least[stage - 1];
      for (int round = 0; round < 60; ++round) {
        const double middle = (low + high) / 2;
        (applied[stage - 1].of(middle) < x ? low : high) = middle;
      }
      x = low;
    }
    return x;
  }

  // out = q * from, or its transpose for a tall M
  template <class X>
  void finish(Matrix q, Strided<X> from) {
    if (tall)
      multiply(n, d, d, from.transposed(), q, Store<double, S>{out, d, 1.0}, threads);
    else
      multiply(d, n, d, q, from, Store<double, S>{out, n, 1.0}, threads);
  }

  enum Outcome { done, go_on, null, failed };

  // The first function of a stage, for singular values in [l, 1]. A pole costs an inverse.
  Rational first_function(double l) const {
    if (accuracy.poles) return zolotarev(l, accuracy.poles);
    Rational best = zolotarev(l, kMostPoles);
    double least_cost = 1e9;
    for (int count = 1; count <= kMostPoles; ++count) {
      const Rational f = zolotarev(l, count);
      const double low = f.of(l), cost = count + (accuracy.single ? 0.5 : 1) * to_one(low, accuracy.deviation).count;
      if (low < 1.2 * accuracy.raised || cost >= least_cost) continue;
      best = f;
      least_cost = cost;
    }
    return best;
  }

  // A from X with singular values of f(X) in [low, 1], by the products Z and R Z that `combine` left.
  template <class X>
  Outcome end(double low, Strided<X> from) {
    const Rational second = to_one(low, accuracy.deviation);
    multiply(d, d, d, square[1], square[0], Into<double>{r.data, ld, 1.0, false, true}, threads);
    if (!resolvents(r, second, square + 1, d, threads)) return failed;
    combine(r, second, square + 1, d, false, threads);
    // The product is symmetric in exact arithmetic. For results of float32 one triangle and its mirror image are
    // enough: the mirror image has an error of eps / l^2, instead of eps / l.
    const bool rounds = sizeof(S) == 4 || accuracy.single;
    multiply(d, d, d, square[1], square[0], Into<double>{r.data, ld, 1 / scale, false, rounds}, threads);
    if (rounds) {
      finish(r, from);
    } else {  // a Newton-Schulz step squares the error of orthogonality
      multiply(d, n, d, r, from, Into<double>{x, n}, threads);
      const Matrix now{x, n, 1};
      multiply_long(d, d, n, now, now.transposed(), Into<double>{r.data, ld, -0.5, false, true}, threads);
      for (int64_t i = 0; i < d; ++i) r.data[i * ld + i] += 1.5;
      finish(r, now);
    }
    return done;
  }

  // The same in float32, by Z alone. Sums are added up in pieces of 64 terms, and A = c X + (Q - c) X with the small
  // matrix Q - c, which keeps rounding errors small.
  template <class X>
  Outcome end_in_float(double low, Strided<X> from) {
    typedef Strided<float> Narrow;
    float* const narrow = reinterpret_cast<float*>(square[2].data);  // X with the layout of out
    if (tall)
      multiply(n, d, d, from.transposed(), square[0], Store<double, float>{narrow, d, 1 / scale}, threads);
    else
      multiply(d, n, d, square[0], from, Store<double, float>{narrow, n, 1 / scale}, threads);
    const Narrow y = tall ? Narrow{narrow, 1, d} : Narrow{narrow, n, 1}, gram{reinterpret_cast<float*>(r.data), ld, 1};
    for_each(d, threads, [&](int64_t i) {
      for (int64_t j = i * ld; j < i * ld + d; ++j) gram.data[j] = 0;
    });
    multiply<float>(d, d, n, y, y.transposed(), Promote<float, float>{gram.data, ld, 0, true}, threads);
    Narrow q[kMostPoles];
    for (int p = 0; p < kMostPoles; ++p) q[p] = {reinterpret_cast<float*>(square[p / 2].data) + p % 2 * d * ld, ld, 1};
    const Rational second = to_one(low, accuracy.deviation);
    if (!resolvents(gram, second, q, d, threads)) return failed;
    combine(gram, second, q, d, false, threads);
    double trace = 0;
    for (int64_t i = 0; i < d; ++i) trace += q[0].data[i * ld + i];
    const float center = static_cast<float>(trace / static_cast<double>(d));
    for (int64_t i = 0; i < d; ++i) q[0].data[i * ld + i] -= center;
    const int64_t rows = tall ? n : d, cols = tall ? d : n;
    for_each(rows, threads, [&](int64_t i) {
      for (int64_t j = i * cols; j < (i + 1) * cols; ++j) out[j] = center * narrow[j];
    });
    if (tall)
      multiply<float>(n, d, d, y.transposed(), q[0], Promote<float, S>{out, d, 0}, threads);
    else
      multiply<float>(d, n, d, q[0], y, Promote<float, S>{out, n, 0}, threads);
    return done;
  }

  template <class X>
  Outcome stage(int number, Strided<X> from) {
    multiply_long(d, d, n, from, from.transposed(), Into<double>{r.data, ld, 1.0, false, true}, threads);
    double bound = 1;  // of the eigenvalues of R; those of a later stage have been brought to 1 at most
    if (number == 0) {
      for (int64_t i = 0; i < d; ++i) squared_norm += r.data[i * ld + i];
      bound = 1.01 * largest_eigenvalue(r, d, probe, vectors, threads);
      if (!(bound > 0)) return failed;
      for_each(d, threads, [&](int64_t i) {
        for (int64_t j = 0; j < d; ++j) r.data[i * ld + j] *= 1 / bound;
      });
    }
    scale = sqrt(bound);

    double l = least[number], smallest, low;
    Rational first;
    for (bool again = number > 0 && accuracy.single;; again = false) {
      first = first_function(l);
      if (!resolvents(r, first, square, d, threads)) return failed;
      const double inverse = largest_eigenvalue(square[0], d, probe, vectors, threads);
      smallest = fmax(sqrt(fmax(1 / inverse - first.pole[0], 0.0)), accuracy.unseen);
      low = fmin(first.of(0.9 * smallest), first.of(l));
      if (!again || low >= accuracy.raised) break;
      l = fmax(0.9 * smallest, kLowest);  // R of the last stage did not show that X has such small singular values
    }
    applied[number] = first;
    least[number] = l;
    // From above, since Lanczos' estimate is from below. Singular values that have been raised cannot be traced back.
    const double share = condition > 0 ? 1 / condition : sqrt(1.01) * original(smallest, number);
    if (share <= kMargin * rtol) return null;
    const bool resolved = smallest >= accuracy.resolved, raised = low >= accuracy.raised;
    const bool fits = n <= 2 * (kSquares - 2) * ld;  // the memory of the matrices that are not used then
    const bool narrows = accuracy.single && raised && fits && (!resolved || 2 * n < 3 * d);
    combine(r, first, square, d, resolved && raised && !narrows, threads);
    if (!narrows && !(resolved && raised)) {
      multiply(d, n, d, square[0], from, Into<double>{x, n, 1 / scale}, threads);
      least[number + 1] = accuracy.next;
      if (accuracy.single && raised) {
        least[number + 1] = low;
        condition = fmax(1 / share, 1.0);
      }
      return go_on;
    }
    condition = fmax(1 / share, 1.0);
    return narrows ? end_in_float(low, from) : end(low, from);
  }

  Outcome iterate() {
    Outcome outcome = stage(0, m);
    for (int number = 1; outcome == go_on && number < kMostStages; ++number) outcome = stage(number, Matrix{x, n, 1});
    return outcome == go_on ? null : outcome;
  }

  // Estimates the residual |M - H A|_F / |M|_F, where H = sym(M A^T), and the error of orthogonality |A A^T - 1|_F /
  // sqrt d, from products with kProbes Gaussian rows.
  void certify(double& residual, double& orthogonality) {
    const Strided<const S> a = tall ? Strided<const S>{out, 1, d} : Strided<const S>{out, n, 1};
    double *wm = long_rows, *wa = wm + kProbes * n, *wha = wa + kProbes * n;
    double *wh = short_rows, *waa = wh + kProbes * d, *wam = waa + kProbes * d;
    few(d, n, probe, m, wm);
    few(d, n, probe, a, wa);
    few(n, d, wm, a.transposed(), wh);
    few(n, d, wa, m.transposed(), wam);
    few(n, d, wa, a.transposed(), waa);
    for (int64_t i = 0; i < kProbes * d; ++i) wh[i] = 0.5 * (wh[i] + wam[i]);
    few(d, n, wh, a, wha);
    residual = sqrt(squared_distance(wm, wha, kProbes * n) / kProbes / squared_norm);
    orthogonality = sqrt(squared_distance(waa, probe, kProbes * d) / static_cast<double>(kProbes * d));
  }

  // to = w * with, kProbes rows w of length k, a k x columns matrix
  void few(int64_t k, int64_t columns, const double* w, Strided<const S> with, double* to) const {
    if (with.s_col == 1 || with.s_row == 1)
      multiply_few<kProbes>(columns, k, w, with, to, threads);
    else
      multiply_long(kProbes, columns, k, Strided<const double>{w, k, 1}, with, Into<double>{to, columns}, threads);
  }

  static double squared_distance(const double* a, const double* b, int64_t count) {
    double sum = 0;
    for (int64_t i = 0; i < count; ++i) sum += (a[i] - b[i]) * (a[i] - b[i]);
    return sum;
  }

  // tr(A M^T)
  double nuclear_norm() const {
    const Strided<const S> along = tall ? m.transposed() : m;
    const int64_t rows = tall ? n : d, cols = tall ? d : n;
    constexpr int W = kWidth<double>;
    for_each(rows, threads, [&](int64_t i) {
      const S *a = out + i * cols, *b = along.from(i, 0).data;
      Full<double> lanes = {};
      int64_t j = 0;
      if (along.s_col == 1)
        for (; j + W <= cols; j += W) lanes = fma(load_as<double, W>(a + j), load_as<double, W>(b + j), lanes);
      double sum = 0;
      for (int l = 0; l < W; ++l) sum += lanes[l];
      for (; j < cols; ++j) sum += static_cast<double>(a[j]) * b[j * along.s_col];
      long_rows[i] = sum;
    });
    double sum = 0;
    for (int64_t i = 0; i < rows; ++i) sum += long_rows[i];
    return sum;
  }
};

}  // namespace

void polar(void* out, double* statistics, const void* m, DType dtype, int64_t batch, int64_t rows, int64_t cols,
           int64_t s_batch, int64_t s_row, int64_t s_col, double rtol, bool single, int threads) {
  const bool tall = rows > cols;
  const int64_t d = tall ? cols : rows, n = tall ? rows : cols;
  constexpr int64_t worth_threads = 1 << 25;  // flops
  const int together = batch >= threads ? threads : 1,
            each = together > 1 || d * d * (3 * n + 8 * d) < worth_threads ? 1 : threads;
  single = single && (dtype == DType::f64 || d >= 128);  // below, float32 is not faster
  const int64_t size = Work::size(d, n);
  const Scratch memory(together * size * 8);
  with_type(dtype, [&]<class S>(Type<S>) {
    if constexpr (sizeof(S) >= 4) {
      const auto one = [&](int64_t b) {
        const Work work{static_cast<double*>(memory.data()) + omp_get_thread_num() * size};
        const Strided<const S> from{static_cast<const S*>(m) + b * s_batch, tall ? s_col : s_row, tall ? s_row : s_col};
        Polar<S> polar(d, n, from, static_cast<S*>(out) + b * d * n, tall, rtol, single, work, each);
        double* to = statistics + 6 * b;
        const auto outcome = polar.iterate();
        to[5] = static_cast<double>(outcome);
        for (int i = 0; i < 5; ++i) to[i] = __builtin_nan("");
        if (outcome != Polar<S>::done) return;
        to[0] = polar.nuclear_norm();
        to[1] = static_cast<double>(d);
        to[2] = polar.condition;
        polar.certify(to[3], to[4]);
      };
      if (together == 1) {  // even a region of one thread makes new threads for each region inside
        for (int64_t b = 0; b < batch; ++b) one(b);
        return;
      }
      OutOfMemory missing;
#pragma omp parallel for num_threads(together) schedule(dynamic)
      for (int64_t b = 0; b < batch; ++b) missing.run([&] { one(b); });
      missing.rethrow();
    }
  });
}

}  // namespace rf::RF_ISA
