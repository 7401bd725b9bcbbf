"""Training core of covidseg: transfer learning of 3D U-Nets for COVID-19 infection in chest CT."""
