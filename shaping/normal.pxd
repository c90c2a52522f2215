"""The inverse of the normal distribution function: M. J. Wichura, "Algorithm AS 241: The Percentage
Points of the Normal Distribution", Applied Statistics 37 (1988), PPND16, with relative errors below
1e-16. 85 % of all arguments cost two polynomials and a division, no logarithm.
"""

cdef extern from *:
    """
    #include <math.h>

    static const double vnic_ppnd16[3][2][8] = {
        {{2509.0809287301226727, 33430.575583588128105, 67265.770927008700853,
          45921.953931549871457, 13731.693765509461125, 1971.5909503065514427,
          133.14166789178437745, 3.387132872796366608},
         {5226.495278852854561, 28729.085735721942674, 39307.89580009271061,
          21213.794301586595867, 5394.1960214247511077, 687.1870074920579083,
          42.313330701600911252, 1.0}},
        {{7.7454501427834140764e-4, 2.27238449892691845833e-2, 0.24178072517745061177,
          1.27045825245236838258, 3.64784832476320460504, 5.7694972214606914055,
          4.6303378461565452959, 1.42343711074968357734},
         {1.05075007164441684324e-9, 5.475938084995344946e-4, 1.51986665636164571966e-2,
          0.14810397642748007459, 0.68976733498510000455, 1.6763848301838038494,
          2.05319162663775882187, 1.0}},
        {{2.01033439929228813265e-7, 2.71155556874348757815e-5, 1.24266094738807843860e-3,
          2.65321895265761230930e-2, 0.29656057182850489123, 1.7848265399172913358,
          5.4637849111641143699, 6.6579046435011037772},
         {2.04426310338993978564e-15, 1.42151175831644588870e-7, 1.84631831751005468180e-5,
          7.86869131145613259100e-4, 1.48753612908506148525e-2, 0.13692988092273580531,
          0.59983220655588793769, 1.0}}};

    static inline double vnic_polynomial(const double *factors, double x)
    {
        /* Estrin's scheme: a chain of three products instead of seven */
        const double *f = factors;
        const double x2 = x * x, x4 = x2 * x2;
        return ((f[0] * x + f[1]) * x2 + (f[2] * x + f[3])) * x4
               + ((f[4] * x + f[5]) * x2 + (f[6] * x + f[7]));
    }

    static inline double vnic_normal_score(double p)
    {
        double q = p - 0.5, r, score;
        if (fabs(q) <= 0.425) {
            r = 0.180625 - q * q;
            return vnic_polynomial(vnic_ppnd16[0][0], r) * q
                   / vnic_polynomial(vnic_ppnd16[0][1], r);
        }
        r = sqrt(-log(q <= 0.0 ? p : 1.0 - p));
        const int tail = r <= 5.0 ? 1 : 2;
        r -= tail == 1 ? 1.6 : 5.0;
        score = vnic_polynomial(vnic_ppnd16[tail][0], r) / vnic_polynomial(vnic_ppnd16[tail][1], r);
        return q < 0.0 ? -score : score;
    }
    """
    # The score z with the probability p, above 0 and below 1, that a normal variable is below z.
    double normal_score "vnic_normal_score" (double p) nogil
